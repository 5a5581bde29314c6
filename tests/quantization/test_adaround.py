"""AdaRound: the rounding that is learned, against all there are; its integers all the way to a file."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.numerics.grid import Grid
from fxcompress.passes.convert import convert
from fxcompress.quantization import PTQ_Quantizer
from fxcompress.quantization.adaround import AdaptiveRounding, annealed
from tests.helpers import Function, image, ready, relative_error, run

WEIGHTS = {"quant_types": ["weight"], "quant_bits": 3}


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return nn.Sequential(layer).eval()


def learned(model: nn.Module, x: Tensor, entry: dict[str, Any], steps: int) -> PTQ_Quantizer:
    quantizer = PTQ_Quantizer(model, [entry], example_inputs=x, data=[x], adaround=steps)
    quantizer.compress().eval()
    return quantizer


def test_weights_on_equal_inputs_are_rounded_together() -> None:
    # Steps of 1: to nearest, all go down and 1.15 is lost; with the largest rounded up 0.15 is.
    model, x = linear([[3.0, 1.45, 1.4, 1.3]]), torch.ones(4, 4) * torch.arange(1.0, 5.0).view(4, 1)
    quantizer = learned(model, x, WEIGHTS, 400)
    module = quantizer.bound_model
    assert module is not None
    assert quantizer.outcomes["adaround"].done == ("0",)
    row = module(torch.eye(4)).flatten().tolist()
    assert row == [3.0, 2.0, 1.0, 1.0]


def test_the_best_of_all_roundings_is_found() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 1, bias=False)).eval()
    x = torch.randn(64, 2) @ torch.randn(2, 8) + 0.1 * torch.randn(64, 8)
    quantizer = learned(model, x, WEIGHTS, 1500)
    found = quantizer.quantizers_of("0")["weight"]
    w = model.get_parameter("0.weight").detach()
    s = found.scale
    errors = []
    for ups in itertools.product((0.0, 1.0), repeat=8):
        rounded = (torch.floor(w / s) + torch.tensor(ups)).clamp(-3, 3) * s
        errors.append(float((x @ (rounded - w).T).square().mean()))
    module = quantizer.bound_model
    assert module is not None
    got = float((module(x) - model(x)).square().mean().detach())
    nearest = float((x @ (found.grid.fake_quantize(w, s, found.zero_point) - w).T).square().mean())
    assert got < nearest / 2
    assert got <= sorted(errors)[5], "among the best six of 256"


def test_soft_values_begin_at_the_weight_and_end_on_the_grid() -> None:
    grid = Grid(3, signed=True, symmetric=True, axis=0)
    rounding, w = AdaptiveRounding(grid), torch.tensor([[3.0, 0.3, -1.7, 0.0], [1.5, -0.2, 0.7, 0.0]])
    torch.testing.assert_close(
        rounding(w), grid.fake_quantize(w, torch.tensor([1.0, 0.5]), torch.zeros(2, dtype=torch.int32))
    )
    v = rounding.begin(w)
    torch.testing.assert_close(rounding.simulate(w).detach(), w, rtol=1e-6, atol=1e-6)
    assert rounding.share()[0, 1].item() == pytest.approx(0.3, abs=1e-6)
    with torch.no_grad():
        v[0, 1:3] += torch.tensor([9.0, -9.0])
        v[0, 3] += 1.0
    rounding.decide()
    expected = torch.tensor([[3.0, 1.0, -2.0, 0.0], [1.5, 0.0, 0.5, 0.0]])
    expected[1, 1] = -0.0  # −0.2 / 0.5 = −0.4: floor −1, share 0.6, up to 0
    torch.testing.assert_close(rounding(w), expected)
    assert rounding.integers(w).tolist() == [[3, 1, -2, 0], [3, 0, 1, 0]]
    other = w.clone().requires_grad_()
    rounding(other).sum().backward()
    assert other.grad is not None
    assert torch.equal(other.grad, torch.ones_like(w)), "straight through"


def test_the_regularizer_is_annealed() -> None:
    assert annealed(0.0) is annealed(0.19) is None
    assert [annealed(p) for p in (0.2, 0.6, 1.0)] == pytest.approx([20.0, 11.0, 2.0])


def convnet() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 6, 3, bias=False), "n1": nn.BatchNorm2d(6), "c2": nn.Conv2d(6, 6, 3, padding=1),
        "fc": nn.Linear(6, 4),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(m.n1(m.c1(x))), 2)
        z = F.relu6(m.c2(y) + y)
        out: Tensor = m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))
        return out

    return ready(Function(forward, **layers)).float()


X = image(8, 3, 8, 8).float()


def quantized(bits: int = 8, **options: Any) -> tuple[PTQ_Quantizer, fxcompress.CompiledModule]:
    config = [{"quant_bits": {"weight": bits, "input": 8, "output": 8}}]
    quantizer = PTQ_Quantizer(convnet(), config, example_inputs=X, data=[X[:4], X[4:]], **options)
    return quantizer, quantizer.compress().eval()


def test_the_same_data_give_the_same_rounding_and_it_is_saved() -> None:
    quantizer, module = quantized(3, adaround=100)
    assert quantizer.outcomes["adaround"].done == ("c1", "c2", "fc")
    again = quantized(3, adaround=100)[1]
    assert torch.equal(run(again, (X,)), run(module, (X,)))
    assert torch.equal(copy.deepcopy(module)(X), module(X))
    fresh = quantized(3, adaround=1)[1]
    assert not torch.equal(run(fresh, (X,)), run(module, (X,)))
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(run(fresh, (X,)), run(module, (X,)))


def test_inputs_that_go_together_need_it_in_few_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    mixed = torch.randn(2, 64)
    x, unseen = torch.randn(128, 2) @ mixed, torch.randn(64, 2) @ mixed
    config: list[dict[str, Any]] = [{**WEIGHTS, "op_types": ["Linear"], "quant_bits": 4}]
    errors = []
    for steps in (False, 500):
        quantizer = PTQ_Quantizer(model, config, example_inputs=x, data=[x], adaround=steps)
        errors.append(relative_error(run(quantizer.compress().eval(), (unseen,)), run(model, (unseen,))))
    assert errors[1] < errors[0] / 2, errors


def test_learned_integers_are_converted_and_exported_as_they_are(tmp_path: Path) -> None:
    quantizer, module = quantized(8, adaround=40)
    state = convert(module).state_dict()
    for name in quantizer.outcomes["adaround"].done:
        found = quantizer.quantizers_of(name)["weight"]
        integers = state[f"{name}_weight_integers"]
        simulated = found.scale.view(-1, *[1] * (integers.dim() - 1)) * integers
        assert isinstance(found, AdaptiveRounding)
        node = next(
            n for n in module.graph.nodes if n.args[1:] and str(n.args[1]) == f"fake_quant_{name}_weight"
        )
        weight = run_until(module, node)
        assert torch.equal(weight, simulated), name
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.parity is not None
    assert (report.parity.mismatches, report.parity.all_integer) == (0, True)


def run_until(module: fxcompress.CompiledModule, node: torch.fx.Node) -> Tensor:
    """The value of ``node`` in a run on ``X``."""
    found: list[Tensor] = []

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n is node:
                found.append(value.detach())
            return value

    with torch.no_grad():
        Recorder(module).run(X)
    return found[0]


def test_masked_weights_stay_zero() -> None:
    model = linear([[1.0, -0.6, 0.3, 0.2], [0.7, 0.1, -1.0, 0.4]])
    x = torch.ones(4, 4)
    masks = {"0": {"weight": torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]])}}
    masked = fxcompress.apply_masks(model, masks, x)
    quantizer = learned(masked, x, WEIGHTS, 200)
    module = quantizer.bound_model
    assert module is not None
    rows = module(torch.eye(4)).T.detach()
    assert (rows[0, 1].item(), rows[1, 3].item()) == (0.0, 0.0)
    assert not math.isnan(float(rows.sum()))
