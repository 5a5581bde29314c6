"""convert: fake-quantize nodes become integers, and the function stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.errors import PassError
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.convert import convert
from fxcompress.passes.insert_fake_quant import Rounded, insert_fake_quant, quantizers
from fxcompress.quantization import PTQ_Quantizer, QAT_Quantizer
from fxcompress.quantization.placement import tensors_of
from tests.helpers import Function, image, ready, run, targets

X = image(4, 3, 8, 8).float()


def model() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 6, 3, bias=False),
        "n1": nn.BatchNorm2d(6),
        "c2": nn.Conv2d(6, 6, 3, padding=1),
        "fc": nn.Linear(6, 4),
    }

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(m.n1(m.c1(x))), 2)  # type: ignore[operator]
        z = F.relu(m.c2(y) + y)  # type: ignore[operator]
        return m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))  # type: ignore[operator,no-any-return]

    return ready(Function(forward, **copy.deepcopy(layers))).float()


def quantized(bits: int = 8) -> CompiledModule:
    return PTQ_Quantizer(model(), [{"quant_bits": bits}], example_inputs=X, data=[X]).compress().eval()


@pytest.mark.parametrize("bits", [8, 4])
def test_only_biases_change_and_by_less_than_half_a_step(bits: int) -> None:
    module = quantized(bits)
    twin = convert(module)
    twin.graph.lint()
    expected, got = run(module, (X,)), run(twin, (X,))
    # A bias moves by less than half of s_x · s_w, and now and then an activation by a step for that.
    assert float((got - expected).abs().max() / expected.abs().max()) < (0.03 if bits == 8 else 0.3)


def test_integers_are_stored_and_floats_are_gone() -> None:
    twin = convert(quantized())
    state = twin.state_dict()
    assert {str(state[f"{name}_weight_integers"].dtype) for name in ("c1", "c2", "fc")} == {"torch.int8"}
    assert {str(state[f"{name}_bias_integers"].dtype) for name in ("c1", "c2", "fc")} == {"torch.int32"}
    assert list(twin.parameters()) == []
    assert not [name for name in state if name.endswith(".weight")]


def test_the_bias_is_rounded_to_multiples_of_both_scales() -> None:
    module = quantized()
    found = quantizers(module)
    twin = convert(module)
    node = next(n for n in module.graph.nodes if n.name == "fc")
    scales = [found[name].get_buffer("scale") for name in ("fc_weight", tensors_of(node)["input"])]
    scale = scales[0].double() * scales[1].double()
    bias = module.get_parameter("fc.bias").detach()
    expected = torch.round(bias.double() / scale.float().double()).to(torch.int32)
    assert torch.equal(twin.get_buffer("fc_bias_integers"), expected)


def test_operators_that_pass_values_on_stand_between_one_grid() -> None:
    names = [name for name in targets(convert(quantized())) if isinstance(name, str)]
    at = names.index("max_pool2d")
    assert names[at - 1].startswith("dequantize_per_tensor")
    assert names[at + 1].startswith("quantize_per_tensor")


def test_what_has_seen_no_values_is_named() -> None:
    module = QAT_Quantizer(model(), [{"quant_bits": 8}], example_inputs=X).compress()
    with pytest.raises(PassError, match=r"'c1_input': this quantizer has seen no values yet.*data="):
        convert(module)


def test_the_module_itself_goes_on_training() -> None:
    module = quantized()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    convert(module)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    module.train()(X).sum().backward()


def test_a_place_is_quantized_once_and_must_exist() -> None:
    module = quantized()
    node = next(n for n in module.graph.nodes if n.name == "fc")
    with pytest.raises(PassError, match="'fc_weight': the model is quantized there already"):
        insert_fake_quant(module, {"fc_weight": (Rounded(node, "weight"), nn.Identity())})
    with pytest.raises(PassError, match="no operand 'bias2' to quantize"):
        insert_fake_quant(module, {"new": (Rounded(node, "bias2"), nn.Identity())})


def test_quantizers_that_do_not_round_change_nothing() -> None:
    module = quantized()
    expected = QAT_Quantizer(model(), [{"quant_bits": 8}], example_inputs=X).compress().eval()
    for quantizer in quantizers(module).values():
        quantizer.quantizing = False  # type: ignore[assignment]
    assert torch.equal(run(convert(module), (X,)), run(module, (X,)))
    torch.testing.assert_close(run(module, (X,)), run(model(), (X,)), rtol=1e-5, atol=1e-5)
    assert len(quantizers(expected)) == len(quantizers(module))


def test_a_transposed_convolution_in_groups_keeps_its_bias_in_floats() -> None:
    model = ready(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2))).float()
    x = image(2, 4, 5, 5).float()
    module = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=x, data=[x]).compress().eval()
    twin = convert(module)
    assert torch.allclose(run(twin, (x,)), run(module, (x,)), rtol=1e-6, atol=1e-6)
    assert "0.bias" in twin.state_dict()
