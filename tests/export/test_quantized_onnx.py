"""export_onnx of quantized modules: integers all through, and those that exact arithmetic gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import PassError
from fxcompress.quantization import QUANTIZERS, PTQ_Quantizer, QAT_Quantizer
from tests.helpers import Function, image, ready, run
from tests.runtime.networks import needs_vnni

X = image(3, 3, 12, 12).float()


def residual() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 8, 3, bias=False), "n1": nn.BatchNorm2d(8), "c2": nn.Conv2d(8, 8, 3, padding=1),
        "dw": nn.Conv2d(8, 8, 3, padding=1, groups=8), "fc": nn.Linear(8, 5),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(m.n1(m.c1(x))), 2)
        z = F.relu6(m.dw(F.relu(m.c2(y) + y)))
        out: Tensor = m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return out

    return ready(Function(forward, **layers)).float()


def quantized() -> fxcompress.CompiledModule:
    return PTQ_Quantizer(residual(), [{"quant_bits": 8}], example_inputs=X, data=[X]).compress()


@needs_vnni
def test_every_operator_runs_on_integers_and_they_are_the_right_ones(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = fxcompress.export_onnx(quantized(), path)
    assert report.lint is not None
    assert report.lint.all_integer, str(report.lint)
    kernels = {operator.kernel for operator in report.lint.operators}
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm", "MaxPool"} <= kernels
    assert report.parity is not None
    assert report.parity.all_integer
    assert (report.parity.mismatches, report.batch_is_dynamic) == (0, True)
    assert all(output.mismatches == 0 for output in report.parity.outputs)
    kinds = {i.data_type for i in onnx.load(path).graph.initializer if len(i.dims) > 1}
    assert kinds == {onnx.TensorProto.INT8}, "weights are stored as int8"


@needs_vnni
def test_the_file_computes_what_the_simulation_does(tmp_path: Path) -> None:
    module, path = quantized(), tmp_path / "model.onnx"
    report = fxcompress.export_onnx(module, path)
    session = onnxruntime.InferenceSession(path)
    x = image(5, 3, 12, 12, seed=4).float()
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = run(module, (x,)).numpy()
    error = np.linalg.norm(run(residual(), (x,)).numpy() - expected)
    assert np.linalg.norm(got - expected) < 0.5 * error, "far less than quantization itself changes"
    assert report.max_relative_difference is not None
    assert report.max_relative_difference < 0.02


def test_what_stays_float_is_named_with_the_reason(tmp_path: Path) -> None:
    model = ready(Function(lambda m, x: m.b(F.gelu(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 2))).float()
    x = image(4, 6).float()
    module = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=x, data=[x]).compress()
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.lint is not None
    assert not report.lint.all_integer
    assert "Erf as Erf; onnxruntime has no integer kernel" in str(report.lint)


@needs_vnni
def test_training_first(tmp_path: Path) -> None:
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    module = QAT_Quantizer(model, [{"quant_bits": 8}], optimizer, example_inputs=X).compress()
    with pytest.raises(PassError, match="has seen no values yet"):
        fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    for _ in range(3):
        optimizer.zero_grad()
        module.train()(X).square().mean().backward()
        optimizer.step()
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert module.training
    assert report.parity is not None
    assert report.parity.mismatches == 0


@needs_vnni
def test_pruned_and_quantized(tmp_path: Path) -> None:
    pruned = fxcompress.compile(residual(), [{"sparsity": 0.5, "op_types": ["Conv2d"]}], X)
    small = fxcompress.speedup(pruned)
    module = PTQ_Quantizer(small, [{"quant_bits": 8}], example_inputs=X, data=[X]).compress()
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.lint is not None
    assert report.lint.all_integer, str(report.lint)
    assert report.parity is not None
    assert report.parity.mismatches == 0


# -- scales of powers of two ---------------------------------------------------------------------------------
class Residual(nn.Module):
    """Two residual blocks, one of them strided; pooling over 4 × 4 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.down, self.c = nn.Conv2d(12, 16, 1, stride=2), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.norm_c, self.dw = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.down(x) + self.norm_c(self.c(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.dw(x)), 1).flatten(1))  # type: ignore[no-any-return]


@needs_vnni
@pytest.mark.parametrize("name", ["qat", "lsq", "ptq"])
def test_with_scales_of_powers_of_two_the_simulation_is_the_runtime_bit_for_bit(
    name: str, tmp_path: Path
) -> None:
    model, x = ready(Residual()).float(), image(6, 3, 16, 16).float()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    config = [{"quant_bits": 8, "quant_scale": "power_of_two"}]
    data = {"data": [x]} if name == "ptq" else {}
    module = QUANTIZERS[name](model, config, optimizer, example_inputs=x, **data).compress()
    for _ in range(3):
        optimizer.zero_grad()
        module.train()(x).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
    path = tmp_path / "model.onnx"
    report = fxcompress.export_onnx(module, path)
    assert report.lint is not None
    assert report.lint.all_integer, str(report.lint)
    session = onnxruntime.InferenceSession(path)
    for seed in range(5):
        x = image(64, 3, 16, 16, seed=10 + seed).float()
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = run(module, (x,)).numpy()
        assert len(np.unique(expected)) > 50
        np.testing.assert_array_equal(got, expected)
