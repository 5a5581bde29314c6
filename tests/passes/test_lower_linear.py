"""lower_linear: linear layers with weights in groups or dynamic inputs get operators of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.errors import PassError
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.convert import convert
from fxcompress.passes.lower_linear import lower_linear
from fxcompress.quantization import DynamicQuantizer, PTQ_Quantizer, QAT_Quantizer, WeightOnlyQuantizer
from tests.helpers import Function, image, ready, run, targets

X = image(4, 40).float()


def model() -> nn.Module:
    layers = {"a": nn.Linear(40, 6), "b": nn.Linear(6, 3, bias=False)}
    return ready(Function(lambda m, x: m.b(torch.relu(m.a(x))), **layers)).float()


def weight_only(bits: int = 4) -> CompiledModule:
    return WeightOnlyQuantizer(model(), [{"quant_bits": bits}], example_inputs=X).compress().eval()


def dynamic() -> CompiledModule:
    return DynamicQuantizer(model(), [{"quant_bits": 8}], example_inputs=X).compress().eval()


def test_weights_in_groups() -> None:
    module = weight_only()
    rounded = ["fake_quantize", "fake_quantize", "call"]
    assert targets(module) == [*rounded, "relu", *rounded]
    twin = convert(module)
    assert targets(twin) == ["matmul_nbits", "add", "relu", "matmul_nbits"]
    assert [n.args[-1] for n in twin.graph.nodes if "matmul_nbits" in str(n.target)] == [4, 4]
    assert sorted(twin.state_dict()) == [
        "a.bias", "a_weight_packed", "a_weight_scale", "a_weight_zero_point",
        "b_weight_packed", "b_weight_scale", "b_weight_zero_point",
    ]  # fmt: skip
    torch.testing.assert_close(run(twin, (X,)), run(module, (X,)), rtol=1e-5, atol=1e-6)


def test_weights_alone_are_multiplied_in_float() -> None:
    config = [{"quant_bits": 8, "quant_types": ["weight"]}]
    module = WeightOnlyQuantizer(model(), config, example_inputs=X).compress().eval()
    assert targets(module) == ["fake_quantize", "call", "relu", "fake_quantize", "call"]
    twin = convert(module)
    assert [n.args[-1] for n in twin.graph.nodes if "matmul_nbits" in str(n.target)] == [0, 0]
    torch.testing.assert_close(run(twin, (X,)), run(module, (X,)), rtol=1e-5, atol=1e-6)


def test_inputs_in_blocks_have_a_kernel_for_4_and_8_bits_alone() -> None:
    config = [{"quant_bits": 3, "quant_types": ["weight", "input"]}]
    module = WeightOnlyQuantizer(model(), config, example_inputs=X).compress()
    with pytest.raises(PassError, match=r"'a_input' rounds in blocks.*a has 3 bits and torch.float32"):
        convert(module)


def test_dynamic_inputs() -> None:
    module = dynamic()
    twin = convert(module)
    assert targets(twin) == ["dynamic_matmul", "add", "relu", "dynamic_matmul"]
    assert twin.get_buffer("a_weight_integers").dtype == torch.int8
    assert twin.get_buffer("a_weight_integers").shape == (40, 6)
    torch.testing.assert_close(run(twin, (X,)), run(module, (X,)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_law_on_other_inputs(seed: int) -> None:
    """Beyond the order of sums there is no difference, so no value falls on another step here."""
    x = image(3, 2, 40, seed=seed).float() * (seed + 1)
    for module in (weight_only(8), weight_only(4), dynamic()):
        torch.testing.assert_close(run(convert(module), (x,)), run(module, (x,)), rtol=1e-5, atol=1e-5)


def test_other_widths_become_the_floats_they_stand_for() -> None:
    twin = model_of_three_bits = convert(weight_only(3))
    assert targets(twin) == ["call", "relu", "call"]
    assert [note.partition(":")[0] for note in model_of_three_bits.notes] == ["a", "b"]
    assert len(twin.get_buffer("b_weight_rounded").unique()) <= 3 * 8
    assert torch.equal(run(twin, (X,)), run(weight_only(3), (X,)))


def test_the_scales_are_those_of_the_weight_as_it_is() -> None:
    """Nothing was run since the weight changed, or ever."""
    module = weight_only()
    with torch.no_grad():
        module.get_parameter("a.weight").mul_(2)
    torch.testing.assert_close(run(convert(module), (X,)), run(module, (X,)), rtol=1e-5, atol=1e-6)


def test_a_masked_weight_and_a_functional_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 40))
            self.mask: Tensor
            self.register_buffer("mask", (torch.rand(5, 40) > 0.5).float())

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.mask)

    torch.manual_seed(0)
    net = Net().eval()
    config = [{"quant_bits": 4, "op_names": ["linear"]}]
    module = WeightOnlyQuantizer(net, config, example_inputs=X).compress().eval()
    twin = convert(module)
    assert targets(twin) == ["matmul_nbits"]
    torch.testing.assert_close(run(twin, (X,)), run(module, (X,)), rtol=1e-5, atol=1e-6)


def test_integer_layers_are_left_to_convert() -> None:
    module = PTQ_Quantizer(model(), [{"quant_bits": 8}], example_inputs=X, data=[X]).compress().eval()
    before = targets(module)
    assert lower_linear(module) == ()
    assert targets(module) == before


def test_a_dynamic_input_needs_a_weight_of_integers() -> None:
    config = [{"quant_types": ["input"]}]
    module = DynamicQuantizer(model(), config, example_inputs=X).compress()
    with pytest.raises(PassError, match=r"'a_input' rounds dynamically, and the weight of a has no signed"):
        convert(module)


def test_other_dtypes_are_named_or_written_as_floats() -> None:
    net = model().double()
    module = DynamicQuantizer(net, [{"quant_bits": 8}], example_inputs=X.double()).compress()
    with pytest.raises(PassError, match=r"reads float32, and the layer is torch.float64; call module.float"):
        convert(module)
    twin = convert(WeightOnlyQuantizer(net, [{"quant_bits": 4}], example_inputs=X.double()).compress())
    assert len(twin.notes) == 2


def test_a_quantizer_that_waits_for_its_step_leaves_the_layer_alone() -> None:
    config = [{"quant_bits": 4, "quant_start_step": 5}]
    module = WeightOnlyQuantizer(model(), config, example_inputs=X).compress()
    assert targets(convert(module)) == ["call", "relu", "call"]


def test_a_weight_that_was_never_run_has_a_range_in_convert_too() -> None:
    config = [{"quant_bits": 8, "quant_types": ["weight"]}]
    module = QAT_Quantizer(model(), config, example_inputs=X).compress()
    torch.testing.assert_close(run(convert(module), (X,)), run(module.eval(), (X,)))


def test_a_layer_that_is_called_twice_is_stored_once() -> None:
    net = ready(Function(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(40, 40))).float()
    for cls, bits in ((WeightOnlyQuantizer, 4), (DynamicQuantizer, 8)):
        twin = convert(cls(net, [{"quant_bits": bits}], example_inputs=X).compress())
        names = sorted(twin.state_dict())
        stored = ["packed", "scale", "zero_point"] if bits == 4 else ["integers", "scale"]
        assert names == ["a.bias", *(f"a_weight_{name}" for name in stored)]
