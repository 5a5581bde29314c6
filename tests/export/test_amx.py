"""Large convolutions by the matrix product, which uses AMX: the same numbers, by the other kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fxcompress
import fxcompress.export.onnx as exporter
from fxcompress.cli import main
from fxcompress.export.amx import has_amx
from fxcompress.export.parity import open_session
from tests.helpers import ready
from tests.runtime.networks import needs_vnni

LARGE = {"pointwise", "wide", "line"}


class Network(nn.Module):
    """Convolutions on both sides of what is large; names say on which."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, 2, 1)
        self.wide = nn.Conv2d(32, 64, 3, padding=1)  # 288 products an output
        self.few_products = nn.Conv2d(64, 128, 1)
        self.norm = nn.BatchNorm2d(128)
        self.few_channels = nn.Conv2d(128, 32, 3, padding=1)
        self.grouped = nn.Conv2d(32, 256, 3, padding=1, groups=2)
        self.pointwise = nn.Conv2d(256, 16, 1, bias=False)
        self.line = nn.Conv1d(16, 64, 16)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.first(x))))
        x = torch.relu(self.few_channels(torch.relu(self.norm(self.few_products(x)))))
        x = self.line(self.pointwise(torch.relu(self.grouped(x))).flatten(2))
        out: Tensor = self.head(x.mean(2))
        return out


def quantized(bits: int = 8, **keys: Any) -> tuple[fxcompress.CompiledModule, Tensor]:
    torch.manual_seed(0)
    model, images = ready(Network()).float(), torch.randn(2, 3, 16, 16)
    config = [{"quant_bits": bits, "quantizer": "ptq", **keys}]
    return fxcompress.compile(model, config, images, data=[images, images.flip(-1)]), images


def zero_points(path: Path) -> dict[str, set[int]]:
    """The zero points of every layer's weight in the file."""
    graph = onnx.load(path).graph
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.input[0].removesuffix("_weight_integers"): {*numbers[node.input[2]].ravel().tolist()}
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("_weight_integers")
    }


@needs_vnni
@pytest.mark.parametrize("bits", [8, 6])
def test_the_numbers_are_the_same(bits: int, tmp_path: Path) -> None:
    module, images = quantized(bits)
    results, reports = [], []
    for amx in (True, False):
        path = tmp_path / f"{amx}.onnx"
        reports.append(fxcompress.export_onnx(module, path, amx=amx))
        results.append(open_session(path).run(None, {reports[-1].inputs[0]: images.numpy()})[0])
    np.testing.assert_array_equal(*results)
    assert [report.for_amx for report in reports] == [len(LARGE), 0]
    for report in reports:
        assert report.parity is not None
        assert report.parity.mismatches == 0
    assert {n for n, points in zero_points(tmp_path / "True.onnx").items() if points == {-1}} == LARGE
    assert {*map(frozenset, zero_points(tmp_path / "False.onnx").values())} == {frozenset({0})}


@pytest.mark.skipif(
    not (Path("/proc/cpuinfo").exists() and hasattr(torch.cpu, "get_capabilities")), reason="nothing to ask"
)
def test_the_processor_is_asked() -> None:
    assert has_amx() == ("amx_int8" in Path("/proc/cpuinfo").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("has", [True, False])
def test_by_default_it_goes_by_this_processor(
    has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "has_amx", lambda: has)
    report = fxcompress.export_onnx(quantized()[0], tmp_path / "model.onnx")
    assert report.for_amx == (len(LARGE) if has else 0)


def test_weights_with_a_zero_point_of_their_own_stay(tmp_path: Path) -> None:
    module, _ = quantized(quant_scheme={"weight": "per_channel_affine"})
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx", amx=True, verify=False)
    assert report.for_amx == 0


def test_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fxcompress.save(quantized()[0], tmp_path / "int8.pt2")
    arguments = ["export", str(tmp_path / "int8.pt2"), "--out", str(tmp_path / "int8.onnx")]
    assert main([*arguments, "--amx"]) == 0
    assert "3 convolutions are laid out for AMX (--no-amx: for processors without)" in capsys.readouterr().out
    assert main([*arguments, "--no-amx"]) == 0
    assert "AMX" not in capsys.readouterr().out
