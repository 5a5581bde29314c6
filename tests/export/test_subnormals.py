"""Behind a softmax that gives subnormal numbers stands a floor; what comes out is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.export.parity import open_session
from tests.helpers import ready
from tests.runtime.networks import needs_vnni

LATER = torch.ones(6, 6).triu(1).bool()
INT8 = {"quant_bits": 8, "quantizer": "ptq"}


class Attention(nn.Module):
    """Every token attends to itself and those before it, up to what the mask leaves."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        out: Tensor = self.out((q @ k.mT * scale + self.mask).softmax(-1) @ v)
        return out


def network(mask: float) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    inputs = {"scale": torch.tensor(0.3), "x": torch.randn(3, 6, 8)}
    model = ready(Attention()).float()
    model.register_buffer("mask", torch.zeros(6, 6).masked_fill(LATER, mask))
    return model, inputs


def clips(path: Path) -> int:
    return sum(node.op_type == "Clip" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("mask", "expected"), [(-100.0, 1), (-1e4, 0), (-20.0, 0), (float("-inf"), 0)])
def test_only_subnormal_probabilities_get_a_floor(mask: float, expected: int, tmp_path: Path) -> None:
    model, inputs = network(mask)
    path = tmp_path / "model.onnx"
    report = fxcompress.export_onnx(model, path, inputs)
    assert clips(path) == expected
    with torch.no_grad():
        truth = model(**inputs).numpy()
    given = {name: inputs[name].numpy() for name in report.inputs}
    np.testing.assert_allclose(open_session(path).run(None, given)[0], truth, rtol=1e-5, atol=1e-6)


@needs_vnni
def test_quantized_layers_around_float_attention(tmp_path: Path) -> None:
    model, inputs = network(-100.0)
    module = fxcompress.compile(model, [{**INT8, "op_types": ["Linear"]}], inputs, data=[inputs])
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert clips(tmp_path / "model.onnx") == 1
    assert report.parity is not None
    assert report.parity.mismatches == 0


@needs_vnni
def test_a_quantizer_behind_the_softmax_stays_there(tmp_path: Path) -> None:
    model, inputs = network(-100.0)
    config = [{**INT8, "op_types": ["Linear", "softmax", "matmul"]}]
    module = fxcompress.compile(model, config, inputs, data=[inputs])
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert clips(tmp_path / "model.onnx") == 0
    assert report.lint is not None
    assert "QLinearSoftmax" in {operator.kernel for operator in report.lint.operators}
