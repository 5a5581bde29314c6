"""LSQ and LSQ+: where steps and offsets begin, what they round to, and their gradients, by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.passes.convert import convert
from fxcompress.quantization import LSQPlusQuantizer, LSQQuantizer
from fxcompress.quantization.lsq import LearnedStep, deviation, least_error
from fxcompress.quantization.lsq_plus import LearnedOffset
from tests.helpers import Function, image, ready, run
from tests.runtime.networks import needs_vnni

U2 = Grid(2, signed=False, symmetric=False)


def at(grid: Grid, scale: Any, offset: Any) -> LearnedOffset:
    """One that learns, at this step and offset."""
    quantizer = LearnedOffset(grid)
    quantizer.scale.data, quantizer.beta.data = torch.tensor(scale), torch.tensor(offset)
    quantizer.zero_point, quantizer.observing = torch.zeros_like(quantizer.scale, dtype=torch.int32), False
    quantizer.shifts.fill_(True)
    return quantizer


def test_value_and_all_three_gradients() -> None:
    # s = 0.5, β = −0.6 → z = 1, so that the grid holds −0.5, 0, 0.5 and 1
    quantizer = at(U2, 0.5, -0.6)
    x = torch.tensor([-0.6, -0.4, 0.1, 0.9, 1.1], requires_grad=True)
    upstream = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    rounded = quantizer(x)
    assert rounded.tolist() == [-0.5, -0.5, 0.0, 1.0, 1.0]
    (rounded * upstream).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 10.0, 100.0, 1000.0, 0.0]
    g = 1 / math.sqrt(5 * 3)
    step, offset = quantizer.scale.grad, quantizer.beta.grad
    assert step is not None
    assert offset is not None
    # u = −0.2, 0.2, 1.2, 2.8, 3.2: below qmin = 0; within round(u) − u; above qmax = 3
    expected = 0 * 1 - 0.2 * 10 - 0.2 * 100 + 0.2 * 1000 + 3 * 10000
    assert step.item() == pytest.approx(g * expected, rel=1e-5)
    assert offset.item() == pytest.approx(g * (1 + 10000), rel=1e-6)


def test_every_channel_has_a_step_and_an_offset() -> None:
    quantizer = at(Grid(2, False, False, axis=1), [0.5, 1.0], [0.0, -1.0])
    x = torch.tensor([[0.9, -5.0], [9.0, 1.4]], requires_grad=True)
    rounded = quantizer(x)
    assert rounded.tolist() == [[1.0, -1.0], [1.5, 1.0]]
    rounded.sum().backward()
    g = 1 / math.sqrt(2 * 3)
    step, offset = quantizer.scale.grad, quantizer.beta.grad
    assert step is not None
    assert offset is not None
    torch.testing.assert_close(step, g * torch.tensor([0.2 + 3, 0 - 0.4]), rtol=1e-5, atol=0)
    torch.testing.assert_close(offset, g * torch.tensor([1.0, 1.0]), rtol=1e-6, atol=0)


def test_a_zero_point_that_is_fixed_counts_with_the_ends_of_the_grid() -> None:
    quantizer = LearnedStep(Grid(3, signed=True, symmetric=False))
    quantizer.scale.data, quantizer.zero_point = torch.tensor(1.0), torch.tensor(-4, dtype=torch.int32)
    quantizer.observing = False
    x = torch.tensor([-0.2, 0.3, 6.9, 9.0], requires_grad=True)
    rounded = quantizer(x)
    assert rounded.tolist() == [0.0, 0.0, 7.0, 7.0]
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx((0 - 0.3 + 0.1 + 7) / math.sqrt(4 * 3), rel=1e-5)


def test_weights_begin_at_three_deviations() -> None:
    rows = torch.tensor([[1.0, 3.0], [-2.0, 2.0]])  # mean 2, σ 1; mean 0, σ 2
    scale, zero_point = deviation(rows, Grid(4, signed=True, symmetric=True, axis=0))
    assert scale.tolist() == [5 / 8, 6 / 8]
    assert zero_point.tolist() == [0, 0]
    whole, _ = deviation(rows, Grid(4, signed=True, symmetric=True))
    assert whole.item() == pytest.approx((1 + 3 * math.sqrt(14 / 4)) / 8, rel=1e-6)  # mean 1, σ² = 18/4 − 1


def test_activations_begin_where_the_squared_error_is_least() -> None:
    x = torch.cat([torch.linspace(-0.3, 1.0, 400), torch.tensor([8.0])])

    def error(scale: Tensor, zero_point: Tensor) -> float:
        return float((U2.fake_quantize(x, scale, zero_point) - x).square().sum())

    scale, zero_point = least_error(x, U2)
    tried = [U2.parameters(torch.tensor(-0.3), torch.tensor(8.0 * k / 100)) for k in range(5, 101)]
    assert error(scale, zero_point) <= 1.02 * min(error(*numbers) for numbers in tried)
    assert error(scale, zero_point) < 0.8 * error(*U2.parameters(x.min(), x.max()))


def test_where_a_tensor_has_no_negative_number_the_offset_stays() -> None:
    quantizer = LearnedOffset(U2).train()
    (quantizer(torch.tensor([0.0, 0.4, 5.0])) * 3).sum().backward()
    assert not bool(quantizer.shifts)
    assert quantizer.beta.grad is not None
    assert quantizer.beta.grad.item() == 0
    with torch.no_grad():
        quantizer.beta.fill_(-9.0)
    assert int(quantizer.deployed()[1]) == U2.qmin


class Net(nn.Module):
    """SiLU has negative values, ReLU none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.a(x)))
        x = F.relu(self.c(F.relu(self.b(x))) + x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


X = image(8, 3, 8, 8).float()


def trained(cls: type[LSQQuantizer | LSQPlusQuantizer], bits: int, **keys: Any) -> Any:
    model = ready(Net()).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    quantizer = cls(model, [{"quant_bits": bits, **keys}], optimizer, example_inputs=X)
    module = quantizer.compress()
    for _ in range(8):
        optimizer.zero_grad()
        module.train()(X).square().mean().backward()
        optimizer.step()
    module.eval()
    return quantizer


def test_offsets_are_trained_where_there_are_negative_numbers() -> None:
    quantizer = trained(LSQPlusQuantizer, 4)
    found = {name: q for name, q in quantizer.fake_quantizers.items() if isinstance(q, LearnedOffset)}
    shifted = {name for name, q in found.items() if bool(q.shifts)}
    assert {"a_input", "a_output"} <= shifted
    assert "b_output" not in shifted
    assert int(found["b_output"].deployed()[1]) == 0, "the kernel does the ReLU by the end of its grid"
    group = quantizer.optimizer.param_groups[-1]
    held = {id(p) for p in group["params"]}
    assert all(id(q.beta) in held and id(q.scale) in held for q in found.values())
    assert group["weight_decay"] == 0.0


@needs_vnni
@pytest.mark.parametrize("cls", [LSQQuantizer, LSQPlusQuantizer])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_grid_it_ends_with_is_the_one_that_runs(cls: Any, bits: int, tmp_path: Path) -> None:
    quantizer = trained(cls, bits)
    module = quantizer.bound_model
    state = convert(module).state_dict()
    for name in ("b_weight", "fc_weight"):
        weight = quantizer.fake_quantizers[name]
        assert torch.equal(state[f"{name}_scale"], weight.scale.abs())
    report = fxcompress.export_onnx(module, tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.parity.mismatches == 0


@pytest.mark.parametrize("cls", [LSQQuantizer, LSQPlusQuantizer])
def test_converted_it_computes_the_same(cls: Any) -> None:
    module = trained(
        cls, 4, quant_scale="power_of_two"
    ).bound_model  # with which biases are rounded in training
    assert torch.equal(run(convert(module), (X,)), run(module, (X,)))


def test_a_calibration_is_taken_over_and_training_goes_on_from_there() -> None:
    quantizer = trained(LSQPlusQuantizer, 4)
    other = LSQPlusQuantizer(ready(Net()).float(), [{"quant_bits": 4}], example_inputs=X)
    fresh = other.compress()
    fresh.load_state_dict(
        {k: v for k, v in quantizer.bound_model.state_dict().items() if "fake_quant" not in k}, False
    )
    other.load_calibration_config(quantizer.calibration_config())
    assert torch.equal(run(fresh, (X,)), run(quantizer.bound_model, (X,)))
    scales = {name: q.scale.clone() for name, q in other.fake_quantizers.items()}
    fresh.train()(X)
    assert all(torch.equal(q.scale, scales[name]) for name, q in other.fake_quantizers.items())


def test_of_a_step_that_training_takes_below_zero_the_magnitude_counts() -> None:
    quantizer = LearnedStep(Grid(4, True, True), "deviation").train()
    x = torch.tensor([0.5, -0.2])
    quantizer(x)
    with torch.no_grad():
        quantizer.scale.fill_(-0.25)
    assert quantizer.deployed()[0].item() == 0.25
    rounded = quantizer(torch.tensor([0.6, 9.0]))
    assert rounded.tolist() == [0.5, 1.75]
    rounded.sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx(-(2 - 2.4 + 7) / math.sqrt(2 * 7), rel=1e-5)


def test_powers_of_two_are_learned_with_the_gradient_of_the_step() -> None:
    grid = Grid(3, True, True, power_of_two=True)
    quantizer = LearnedStep(grid)
    quantizer.scale.data, quantizer.zero_point = torch.tensor(0.3), torch.tensor(0, dtype=torch.int32)
    quantizer.observing = False
    x = torch.tensor([0.6, -4.0])
    rounded = quantizer(x)
    assert rounded.tolist() == [0.5, -1.5]  # s = 1/2: 1.2 → 1, −8 → −3
    rounded.sum().backward()
    assert quantizer.scale.grad is not None
    assert quantizer.scale.grad.item() == pytest.approx((1 - 1.2 - 3) / math.sqrt(2 * 3), rel=1e-6)


def test_it_trains_in_float64_and_bfloat16() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        for quantizer in (LearnedOffset(U2), LearnedStep(Grid(2, True, True))):
            x = torch.tensor([-0.4, 0.2, 1.0], dtype=dtype, requires_grad=True)
            rounded = quantizer.train()(x)
            assert rounded.dtype is dtype
            rounded.sum().backward()
            assert x.grad is not None
            assert x.grad.dtype is dtype
            assert isinstance(quantizer, FakeQuantize)


def test_a_functional_model_takes_it_from_the_config_list() -> None:
    model = ready(Function(lambda m, x: m.b(F.gelu(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 2))).float()
    x = image(4, 6).float()
    module = fxcompress.compile(model, [{"quantizer": "lsq+", "quant_bits": 4}], x, data=[x])
    module.train()(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
