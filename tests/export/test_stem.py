"""First convolutions are rewritten for onnxruntime's fast kernel: the integers stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxscript import ir
from torch import Tensor, nn

import fxcompress
import fxcompress.export.onnx as exporter
from fxcompress.export.parity import open_session
from fxcompress.export.stem import rewrite_stems
from tests.helpers import ready
from tests.runtime.networks import needs_vnni

PTQ = [{"quant_bits": 8, "quantizer": "ptq"}]
FOLD, PAD = "Reshape", "Pad"


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def both(
    model: nn.Module, images: Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, list[str], tuple[Any, Any]]:
    """The report and operators of the file, and its outputs beside those of the graph before the rewrite."""

    def kept(graph: Any) -> None:
        ir.save(graph, folder / "plain.onnx")
        rewrite_stems(graph)

    module = fxcompress.compile(model.float(), PTQ, images, data=[images, 0.7 * images.flip(-1)])
    monkeypatch.setattr(exporter, "rewrite_stems", kept)
    report = fxcompress.export_onnx(module, folder / "rewritten.onnx")
    given = {report.inputs[0]: images.numpy()}
    results = [open_session(folder / f"{n}.onnx").run(None, given)[0] for n in ("rewritten", "plain")]
    return report, operators(folder / "rewritten.onnx"), (results[0], results[1])


def network(channels: int, **convolution: Any) -> nn.Module:
    width = convolution.pop("out_channels", 16)
    first = nn.Conv2d(channels, width, **convolution)
    return ready(nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 1)))


CASES = [
    # Kernel, stride, what columns make of it: FOLD once for the image, once for what several outputs give.
    ([FOLD, FOLD], 3, (32, 32), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ([FOLD, FOLD], 3, (33, 32), {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False}),
    ([FOLD, FOLD], 3, (32, 36), {"kernel_size": 5, "stride": 2, "padding": (0, 2)}),
    ([FOLD, FOLD], 1, (36, 36), {"kernel_size": (3, 5), "stride": 2, "padding": (0, 2)}),
    ([FOLD, FOLD], 2, (32, 32), {"kernel_size": (6, 4), "stride": (3, 2), "padding": (1, 3)}),
    ([FOLD, FOLD], 3, (30, 32), {"kernel_size": 3, "padding": 1}),
    ([FOLD, FOLD], 3, (32, 32), {"kernel_size": 7, "padding": 3}),
    ([FOLD], 3, (32, 32), {"kernel_size": 7, "stride": 4, "padding": 3}),
    ([FOLD], 3, (32, 32), {"kernel_size": 4, "stride": 4}),  # patches
    ([FOLD, FOLD], 3, (32, 32), {"kernel_size": 2, "stride": 2}),
    ([PAD], 3, (32, 33), {"kernel_size": 3, "stride": 2, "padding": 1}),  # columns do not come out even
    ([PAD], 3, (32, 32), {"kernel_size": 3}),
    ([PAD], 3, (32, 32), {"kernel_size": 3, "padding": 1, "out_channels": 40}),  # four times as many outputs
    ([PAD], 1, (9, 8), {"kernel_size": (3, 1), "padding": 1}),
    ([], 3, (33, 33), {"kernel_size": 7, "stride": 2}),
    ([], 3, (32, 32), {"kernel_size": 11, "stride": 4, "padding": 2}),
    ([], 3, (33, 33), {"kernel_size": 3, "stride": 3}),  # patches
    ([], 3, (32, 32), {"kernel_size": 3, "padding": 2, "dilation": 2}),
    ([], 3, (32, 32), {"kernel_size": 1}),
    ([], 4, (32, 32), {"kernel_size": 3, "stride": 2, "padding": 1}),
]


@needs_vnni
@pytest.mark.parametrize(("expected", "channels", "size", "convolution"), CASES)
def test_a_first_convolution_gives_the_same_integers(
    expected: list[str],
    channels: int,
    size: tuple[int, int],
    convolution: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    images = torch.randn(3, channels, *size) + 0.4
    report, found, (mine, plain) = both(network(channels, **dict(convolution)), images, tmp_path, monkeypatch)
    assert [op for op in found if op in (FOLD, PAD)] == expected
    np.testing.assert_array_equal(mine, plain)
    assert report.lint.all_integer
    assert report.parity.mismatches == 0
    assert report.batches == (3, 4)


class TwoStems(nn.Module):
    """Two convolutions read the image, one inside the network reads two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(3, 8, 3, 2, 1)
        self.narrow, self.last = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.narrow(torch.relu(self.a(x) + self.b(x))))
        return out


@needs_vnni
def test_an_image_read_twice_and_few_channels_within_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    report, found, (mine, plain) = both(ready(TwoStems()), images, tmp_path, monkeypatch)
    assert found.count(FOLD) == 6
    np.testing.assert_array_equal(mine, plain)
    assert report.lint.all_integer
    assert report.parity.mismatches == 0


class Normalizing(nn.Module):
    """Takes the image's mean off in float, then convolves."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 7, 2, 3)
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv((x - self.mean) / 0.25)
        return out


@needs_vnni
def test_an_image_normalized_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, found, (mine, plain) = both(ready(Normalizing()), torch.rand(2, 3, 32, 32), tmp_path, monkeypatch)
    assert found.count(FOLD) == 2
    np.testing.assert_array_equal(mine, plain)


class Twice(nn.Module):
    """One weight, two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.relu(self.conv(x)))
        return out


@needs_vnni
def test_a_weight_that_two_calls_read_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    _, found, (mine, plain) = both(ready(Twice()), torch.randn(2, 3, 16, 16), tmp_path, monkeypatch)
    assert not {FOLD, PAD} & set(found)
    np.testing.assert_array_equal(mine, plain)
