"""Speedup of quantized modules: ranges go with their channels, and the function stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.quantization import QUANTIZERS
from tests.helpers import Function, image, ready, relative_error, run, weight_shape

X = image(4, 3, 9, 9).float()


def convnet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.n1(m.c1(x)))
        z = F.relu(m.c3(F.relu(m.c2(y))) + y)
        out: Tensor = m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return out

    layers = {
        "c1": nn.Conv2d(3, 8, 3, bias=False), "n1": nn.BatchNorm2d(8), "c2": nn.Conv2d(8, 12, 3, padding=1),
        "c3": nn.Conv2d(12, 8, 3, padding=1), "fc": nn.Linear(8, 5),
    }  # fmt: skip
    return ready(Function(forward, **layers)).float()


def both(quantizer: str, bits: int, **keys: Any) -> fxcompress.CompiledModule:
    config: list[dict[str, Any]] = [
        {"sparsity": 0.5, "op_types": ["Conv2d"]}, {"quant_bits": bits, "quantizer": quantizer, **keys}
    ]  # fmt: skip
    return fxcompress.compile(convnet(), config, X, data=[X])


@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_pruned_and_quantized_module_shrinks_exactly(bits: int, scale: str) -> None:
    module = both("ptq", bits, quant_scale=scale)
    small = fxcompress.speedup(module)
    shapes = {name: weight_shape(small, name) for name in ("c1", "c2", "c3", "fc")}
    assert shapes == {"c1": (4, 3, 3, 3), "c2": (6, 4, 3, 3), "c3": (4, 6, 3, 3), "fc": (5, 4)}
    assert small.report.kept == ()
    assert relative_error(run(small, (X,)), run(module, (X,))) <= 1e-5
    found = quantizers(small)
    assert found["c2_weight"].get_buffer("scale").shape == (6,)
    before = quantizers(module)["c1_output"].get_buffer("scale")
    assert torch.equal(found["c1_output"].get_buffer("scale"), before)


def test_the_small_module_trains_exports_and_is_saved(tmp_path: Any) -> None:
    small = fxcompress.speedup(both("qat", 8))
    report = fxcompress.export_onnx(small, tmp_path / "m.onnx", verify=False)
    assert report.lint is not None
    assert report.lint.all_integer, str(report.lint)
    fxcompress.save(small, tmp_path / "m.pt2")
    assert torch.equal(run(fxcompress.load(tmp_path / "m.pt2"), (X,)), run(small, (X,)))
    small.train()(X).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())


@pytest.mark.parametrize("name", sorted(set(QUANTIZERS) - {"ptq", "qat", "naive"}))
def test_what_rounds_by_rules_of_its_own_keeps_its_channels_and_the_report_says_so(name: str) -> None:
    module = both(name, 8 if name == "dynamic" else 4)
    small = fxcompress.speedup(module)
    assert relative_error(run(small, (X,)), run(module, (X,))) <= 1e-5
    assert any("fxcompress.fake_quantize" in reason for _, reason in small.report.kept)


def test_a_weight_that_loses_inputs_keeps_its_scale() -> None:
    """The largest weight of a row reads a channel that goes."""
    layers = {"a": nn.Linear(4, 6), "b": nn.Linear(6, 3)}
    model = ready(Function(lambda m, x: m.b(F.relu(m.a(x))), **layers)).float()
    with torch.no_grad():
        model.get_parameter("b.weight")[:, 0] = 9.0
    x = image(5, 4).float()
    mask = torch.ones(6, 4)
    mask[0] = 0
    masked = fxcompress.apply_masks(model, {"a": {"weight": mask, "bias": mask[:, 0]}}, x)
    module = QUANTIZERS["ptq"](masked, [{"quant_bits": 8}], example_inputs=x, data=[x]).compress()
    small = fxcompress.speedup(module)
    assert weight_shape(small, "b") == (3, 5)
    assert relative_error(run(small, (x,)), run(module, (x,))) <= 1e-6
    scale = quantizers(small)["b_weight"]
    assert isinstance(scale, FakeQuantize)
    assert torch.equal(scale.scale, torch.full((3,), 9.0 / 127))
