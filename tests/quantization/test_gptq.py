"""GPTQ: less error of outputs than rounding to the nearest, and the numbers of a slow reference."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import FxcompressError, PassError
from fxcompress.numerics.blocks import rounded_in_blocks
from fxcompress.numerics.grid import Grid
from fxcompress.quantization import GPTQQuantizer, WeightOnlyQuantizer
from fxcompress.quantization.gptq import GPTQWeight, round_columns

CONFIG = [{"op_types": ["Linear"], "quantizer": "gptq"}]


def correlated(rows: int, seed: int, features: int = 64) -> Tensor:
    """Inputs that 8 hidden variables explain for the most part."""
    fixed, random = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    mixing = torch.randn(8, features, generator=fixed)
    noise = torch.randn(rows, features, generator=random)
    return torch.randn(rows, 8, generator=random) @ mixing + 0.3 * noise


def layer(seed: int, inputs: int = 64, outputs: int = 32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, outputs)).eval()


def gptq(model: nn.Module, data: Iterable[Tensor] | None, bits: int = 4, size: int = 32) -> GPTQQuantizer:
    config = [{"quant_bits": bits, "quant_types": ["weight"]}]
    x = torch.zeros(2, model.get_parameter("0.weight").shape[1])
    quantizer = GPTQQuantizer(model, config, example_inputs=x, data=data, group_size=size)
    quantizer.compress().eval()
    return quantizer


def nearest(model: nn.Module, bits: int = 4, size: int = 32) -> Tensor:
    x = torch.eye(model.get_parameter("0.weight").shape[1])
    module = WeightOnlyQuantizer(model, [{"quant_bits": bits}], example_inputs=x, group_size=size).compress()
    return rounded(module)


def rounded(module: nn.Module) -> Tensor:
    found: Tensor = module.get_submodule("fake_quant.0_weight")(module.get_parameter("0.weight"))
    return found.detach()


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_outputs_on_new_correlated_inputs_have_half_the_error(bits: int, seed: int) -> None:
    model, x, new = layer(seed), correlated(200, seed), correlated(100, seed + 1000)
    weight = model.get_parameter("0.weight").detach()
    errors = [
        float((new @ (found - weight).T).norm())
        for found in (
            rounded(gptq(model, [x[:100], x[100:]], bits).bound_model or model),
            nearest(model, bits),
        )
    ]
    assert errors[0] < 0.5 * errors[1]  # measured: 0.30 to 0.37


@pytest.mark.parametrize("inputs", [64, 70])
@pytest.mark.parametrize("bits", [4, 8])
def test_uncorrelated_inputs_give_the_nearest_bit_for_bit(inputs: int, bits: int) -> None:
    model = layer(0, inputs)
    data = [torch.diag(torch.linspace(0.5, 3.0, inputs))]
    assert torch.equal(rounded(gptq(model, data, bits).bound_model or model), nearest(model, bits))


def reference(weight: Tensor, inputs: Tensor, bits: int, size: int) -> Tensor:
    """Optimal brain quantization column by column: the inverse of what remains is taken anew every time."""
    w = weight.detach().double().clone()
    hessian = 2 * inputs.double().T @ inputs.double()
    hessian += torch.eye(len(hessian)) * 0.01 * hessian.diagonal().mean()
    result = torch.zeros_like(w)
    for j in range(w.shape[1]):
        if j % size == 0:
            group = w[:, j : j + size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = (high - low) / (2**bits - 1)
            zero = torch.round(-low / scale)
        inverse = torch.linalg.inv(hessian[j:, j:])
        steps = (torch.round(w[:, j] / scale) + zero).clamp(0, 2**bits - 1)
        result[:, j] = (steps - zero) * scale
        error = (w[:, j] - result[:, j]) / inverse[0, 0]
        w[:, j:] -= torch.outer(error, inverse[0])
    return result.float()


@pytest.mark.parametrize(("inputs", "size"), [(5, 16), (40, 16), (150, 32), (300, 256)])
def test_the_columns_are_those_of_a_slow_reference(inputs: int, size: int) -> None:
    model, x = layer(2, inputs, 6), correlated(400, 3, inputs)
    weight = model.get_parameter("0.weight")
    got = rounded(gptq(model, [x], 4, size).bound_model or model)
    expected = reference(weight, x, 4, size)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)  # steps are about 0.02 wide


def test_a_layer_sees_what_rounded_layers_in_front_of_it_make() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    x = correlated(200, 1)
    quantizer = gptq(model, [x])
    first = rounded(quantizer.bound_model or model)
    hidden = torch.relu(x @ first.T + model.get_parameter("0.bias").detach())
    expected = GPTQWeight(Grid(4, signed=False, symmetric=False), 32)
    expected.solve(model.get_parameter("2.weight").detach(), 2 * hidden.double().T @ hidden.double())
    weight = model.get_parameter("2.weight")
    torch.testing.assert_close(quantizer.quantizers_of("2")["weight"](weight), expected(weight))


def test_rounded_inputs_are_the_ones_it_makes_up_for() -> None:
    model, x = layer(0), correlated(200, 1)
    quantizer = GPTQQuantizer(model, [{"quant_bits": 4}], example_inputs=x, data=[x])
    quantizer.compress()
    seen = rounded_in_blocks(x, 32).double()
    expected = GPTQWeight(Grid(4, signed=False, symmetric=False), 32)
    weight = model.get_parameter("0.weight").detach()
    expected.solve(weight, 2 * seen.T @ seen)
    torch.testing.assert_close(quantizer.quantizers_of("0")["weight"](weight), expected(weight))


def test_data_by_batches_is_data_at_once_and_twice_is_once() -> None:
    x = correlated(96, 5)
    found = [rounded(gptq(layer(1), data).bound_model or layer(1)) for data in ([x], [x], [x[:40], x[40:]])]
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], rtol=1e-3, atol=1e-4)


def test_pruned_weights_stay_zero() -> None:
    model = layer(0)
    with torch.no_grad():
        model.get_parameter("0.weight")[:, ::2] = 0
    weight, x = model.get_parameter("0.weight").detach(), correlated(200, 0)
    found = rounded(gptq(model, [x]).bound_model or model)
    assert bool((found[weight == 0] == 0).all())
    assert float((x @ (found - weight).T).norm()) < 0.7 * float((x @ (nearest(model) - weight).T).norm())


def test_inputs_that_are_all_zero_give_the_nearest() -> None:
    assert torch.equal(
        rounded(gptq(layer(0), [torch.zeros(4, 64)]).bound_model or layer(0)), nearest(layer(0))
    )


def test_without_data_nothing_is_rounded_until_calibrate() -> None:
    model, x = layer(0), correlated(50, 0)
    quantizer = gptq(model, None)
    module = quantizer.bound_model
    assert module is not None
    torch.testing.assert_close(module(x), model(x))
    with pytest.raises(PassError, match="'0_weight': this quantizer has seen no values yet"):
        fxcompress.export_onnx(module, "never.onnx", x)
    quantizer.calibrate([x])
    assert torch.equal(rounded(module), rounded(gptq(model, [x]).bound_model or model))


def test_training_goes_on_from_the_weights_that_were_chosen() -> None:
    x = correlated(50, 0)
    model = layer(0)
    module = gptq(model, [x]).bound_model
    assert module is not None
    before = rounded(module)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = module.train()(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(rounded(module), before)


def test_a_checkpoint_holds_the_choice() -> None:
    x, model = correlated(50, 0), layer(0)
    module, fresh = gptq(model, [x]).bound_model, gptq(model, None).bound_model
    assert module is not None
    assert fresh is not None
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))


@pytest.mark.parametrize(
    ("data", "message"),
    [([], "data holds no batch"), ([torch.full((2, 64), torch.inf)], "not finite on data")],
)
def test_useless_data_is_named(data: list[Tensor], message: str) -> None:
    with pytest.raises(FxcompressError, match=message):
        gptq(layer(0), data)


def test_compile_is_the_short_way() -> None:
    x = correlated(50, 0)
    config = [{**CONFIG[0], "quant_types": ["weight"]}]
    module = fxcompress.compile(layer(0), config, x, data=[x])
    assert torch.equal(rounded(module), rounded(gptq(layer(0), [x]).bound_model or layer(0)))


def test_columns_of_one_block_and_of_several_are_the_same() -> None:
    """What the later blocks get at once is what they would get column by column (128 to a block)."""
    x = correlated(400, 7, 160)
    weight = layer(3, 160, 4).get_parameter("0.weight")
    by = GPTQWeight(Grid(4, signed=False, symmetric=False), 32)
    found, scales, zeros = round_columns(weight, 2 * x.double().T @ x.double(), by)
    assert scales.shape == zeros.shape == (4, 5)
    torch.testing.assert_close(found, reference(weight, x, 4, 32), rtol=1e-3, atol=1e-4)
