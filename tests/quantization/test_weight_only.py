"""WeightOnlyQuantizer and DynamicQuantizer: what they round, against formulas written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.numerics.blocks import BlockFakeQuantize
from fxcompress.numerics.dynamic import DynamicFakeQuantize
from fxcompress.numerics.grouped import GroupFakeQuantize
from fxcompress.quantization import DynamicQuantizer, GPTQQuantizer, Quantizer, WeightOnlyQuantizer
from tests.helpers import Function, image, ready

X = image(4, 70).float()
LINEAR = [{"op_types": ["Linear"], "quantizer": "weight_only"}]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, 12), nn.ReLU(), nn.Linear(12, 5, bias=False)).eval()


def by_loops(weight: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """Every group of every row on its own, in float64."""
    rounded, w = np.zeros(weight.shape), weight.detach().double().numpy()
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], size):
            group = w[row, start : start + size]
            if symmetric:
                scale = np.abs(group).max() / (2 ** (bits - 1) - 1)
                rounded[row, start : start + size] = np.round(group / scale) * scale
                continue
            low, high = min(group.min(), 0), max(group.max(), 0)
            scale = (high - low) / (2**bits - 1)
            zero = np.round(-low / scale)
            steps = np.clip(np.round(group / scale) + zero, 0, 2**bits - 1)
            rounded[row, start : start + size] = (steps - zero) * scale
    return torch.from_numpy(rounded).float()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_are_rounded_group_by_group(bits: int, size: int, symmetric: bool) -> None:
    net = model()
    scheme = "per_channel_symmetric" if symmetric else "per_channel_affine"
    config = [{"quant_bits": bits, "quant_scheme": scheme, "quant_types": ["weight"]}]
    quantizer = WeightOnlyQuantizer(net, config, example_inputs=X, group_size=size)
    got = quantizer.compress().eval()(X)
    weights = [by_loops(net.get_parameter(f"{i}.weight"), bits, size, symmetric) for i in (0, 2)]
    expected = F.linear(F.relu(F.linear(X, weights[0], net.get_parameter("0.bias"))), weights[1])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["class", "compile"])
def test_four_affine_bits_in_groups_of_32_and_inputs_in_blocks_by_default(way: str) -> None:
    if way == "class":
        module = WeightOnlyQuantizer(model(), LINEAR, example_inputs=X).compress()
    else:
        module = fxcompress.compile(model(), LINEAR, X)
    found = dict(module.get_submodule("fake_quant").named_children())
    weights, inputs = "4-bit signed affine, in groups of 32", "8-bit signed symmetric, in blocks of 32"
    assert {name: str(q.extra_repr()) for name, q in found.items()} == {
        "0_weight": weights, "0_input": inputs, "2_weight": weights, "2_input": inputs,
    }  # fmt: skip
    weight = by_loops(module.get_parameter("0.weight"), 4, 32, symmetric=False)
    quantizer = found["0_weight"]
    assert isinstance(quantizer, GroupFakeQuantize)
    torch.testing.assert_close(quantizer(module.get_parameter("0.weight")), weight)


@pytest.mark.parametrize(
    ("cls", "entry", "options", "message"),
    [
        (WeightOnlyQuantizer, {"quant_bits": 4}, {"group_size": 24}, "a power of two of at least 16, got 24"),
        (GPTQQuantizer, {"quant_bits": 4}, {"group_size": 8}, "a power of two of at least 16, got 8"),
        (WeightOnlyQuantizer, {"quant_types": ["input"]}, {}, r"expected 'weight' among them for quantizer"),
        (DynamicQuantizer, {"quant_types": ["output"]}, {}, "expected some of weight, input for quantizer"),
        (DynamicQuantizer, {"quant_bits": 4}, {}, r"expected uint8, affine for the input of '0', got 4 bits"),
        (DynamicQuantizer, {"quant_bits": {"weight": 9}}, {}, "integers of up to 8 bits for the weight"),
        (DynamicQuantizer, {"quant_dtype": {"weight": "uint"}}, {}, "signed symmetric .* got 8 bits, uint"),
    ],
)
def test_a_wrong_config_is_named(
    cls: type[Quantizer], entry: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(model(), [entry], example_inputs=X, **options).compress()


@pytest.mark.parametrize("cls", [WeightOnlyQuantizer, GPTQQuantizer, DynamicQuantizer])
def test_other_layers_are_left_out_and_refused_where_they_are_named(cls: type[Quantizer]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = image(2, 3, 2, 2).float()
    module = cls(net, [{"quant_types": ["weight"]}], example_inputs=x).compress()
    assert [name for name, _ in module.get_submodule("fake_quant").named_children()] == ["2_weight"]
    config = [{"quant_types": ["weight"], "op_names": ["0"]}]
    with pytest.raises(ConfigError, match=r"expected linear layers, got '0' \(conv2d\)"):
        cls(net, config, example_inputs=x).compress()


def test_inputs_are_rounded_block_by_block() -> None:
    net = nn.Sequential(nn.Linear(40, 5)).eval()
    x = image(3, 2, 40).float()
    x[0, 0, :16] = 0
    config = [{"quant_bits": 8}]
    got = WeightOnlyQuantizer(net, config, example_inputs=x, group_size=16).compress().eval()(x)
    rounded = x.double().clone()
    for row in rounded.reshape(-1, 40):
        for start in (0, 16, 32):
            block = row[start : start + 16]
            scale = block.abs().max() / 127
            if scale > 0:
                block.copy_((block / scale).round() * scale)
    weight = by_loops(net.get_parameter("0.weight"), 8, 16, symmetric=False)
    expected = F.linear(rounded.float(), weight, net.get_parameter("0.bias"))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_gradients_pass_the_rounding_of_blocks() -> None:
    x = image(2, 20).float().requires_grad_()
    (BlockFakeQuantize(16)(x) * torch.arange(20.0)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.arange(20.0).expand(2, 20))


# -- dynamic ---------------------------------------------------------------------------------------------
def dynamically(x: Tensor, layer: nn.Module) -> Tensor:
    """Both operands in integers, in float64."""
    w = layer.get_parameter("weight").detach().double()
    s_w = w.abs().amax(1) / 127
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    s = (high - low) / 255
    z = torch.round(-low / s)
    steps = ((torch.round(x / s) + z).clamp(0, 255) - z).double()
    y = steps @ torch.round(w / s_w[:, None]).T * (s * s_w)
    return y if layer.bias is None else y + layer.get_parameter("bias").detach()


def test_dynamic_multiplies_integers_over_the_range_at_hand() -> None:
    net = model()
    module = DynamicQuantizer(net, [{"quant_bits": 8}], example_inputs=X).compress().eval()
    for x in (X, X * 3 + 1, X.abs()):
        expected = dynamically(F.relu(dynamically(x, net.get_submodule("0"))).float(), net.get_submodule("2"))
        torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_dynamic_rounds_where_the_layer_reads() -> None:
    """Behind a slice, whose values have a range of their own; other quantizers round in front of it."""
    layer = nn.Linear(8, 4)
    net = ready(Function(lambda m, x: m.fc(x[:, 0]), fc=layer)).float()
    x = image(3, 5, 8).float()
    x[:, 1:] *= 100
    module = DynamicQuantizer(net, [{"quant_bits": 8}], example_inputs=x).compress().eval()
    torch.testing.assert_close(module(x).double(), dynamically(x[:, 0], layer), rtol=1e-5, atol=1e-5)


def test_dynamic_rounds_an_input_of_several_layers_once() -> None:
    layers = {"a": nn.Linear(8, 4), "b": nn.Linear(8, 4)}
    net = ready(Function(lambda m, x: m.a(x) + m.b(x), **layers)).float()
    quantizer = DynamicQuantizer(net, [{"quant_bits": 8}], example_inputs=image(3, 8).float())
    quantizer.compress()
    inputs = [q for q in quantizer.fake_quantizers.values() if isinstance(q, DynamicFakeQuantize)]
    assert inputs == [quantizer.quantizers_of("a")["input"]] == [quantizer.quantizers_of("b")["input"]]


def test_a_later_entry_leaves_what_an_earlier_one_gave() -> None:
    config: list[dict[str, Any]] = [{"quant_bits": 8}, {"quant_scheme": "per_channel_symmetric"}]
    quantizer = WeightOnlyQuantizer(model(), config, example_inputs=X)
    quantizer.compress()
    assert {q.grid.bits for q in quantizer.fake_quantizers.values()} == {8}


@pytest.mark.parametrize("cls", [WeightOnlyQuantizer, DynamicQuantizer])
def test_the_projections_of_attention_are_linear_layers(cls: type[Quantizer]) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    module = cls(net, [{"quant_bits": 8}], example_inputs=torch.randn(2, 3, 16)).compress()
    found = {name for name, _ in module.get_submodule("fake_quant").named_children() if "weight" in name}
    assert found == {f"{layer}_weight" for layer in ("self_attn", "self_attn_out_proj", "linear1", "linear2")}


def test_a_saved_module_rounds_its_inputs_as_before(tmp_path: Path) -> None:
    module = WeightOnlyQuantizer(model(), LINEAR, example_inputs=X, group_size=16).compress().eval()
    fxcompress.save(module, tmp_path / "m.pt2")
    assert torch.equal(fxcompress.load(tmp_path / "m.pt2").eval()(X), module(X))
