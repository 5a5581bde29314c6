"""Quantizers: what they round, against numbers computed by hand; their life in a training loop."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.quantization import (
    QUANTIZERS,
    BNNQuantizer,
    DoReFaQuantizer,
    LSQQuantizer,
    NaiveQuantizer,
    PTQ_Quantizer,
    QAT_Quantizer,
    QuantGrad,
    Quantizer,
    QuantType,
)

PER_TENSOR = {"quant_scheme": "per_tensor_affine", "quant_dtype": "uint", "quant_bits": 8}


def linear(weight: list[list[float]], bias: bool = False) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return nn.Sequential(layer).eval()


def convnet() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0.0, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model.eval()


IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 3


# -- QAT -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("weights", "scale", "zero_points"),
    [(range(6), 5 / 255, {0}), (range(-1, 6), 6 / 255, {42, 43})],
)
def test_qat_on_small_integer_weights(weights: range, scale: float, zero_points: set[int]) -> None:
    """The seeds' own example: per-tensor affine uint8."""
    model = linear([[float(w) for w in weights]])
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], **PER_TENSOR}
    quantizer = QAT_Quantizer(model, [entry], example_inputs=torch.zeros(1, len(weights)))
    quantizer.compress().eval()(torch.zeros(1, len(weights)))
    found = quantizer.quantizers_of("0")["weight"]
    assert found.scale.item() == pytest.approx(scale, rel=1e-6)
    assert found.zero_point.item() in zero_points


def test_qat_ranges_of_activations_after_two_batches() -> None:
    entry = {"op_types": ["Linear"], "quant_types": ["input"], "quant_bits": 8}
    quantizer = QAT_Quantizer(linear([[1.0, 1.0]]), [entry], example_inputs=torch.zeros(1, 2))
    module = quantizer.compress().train()
    module(torch.tensor([[0.0, 2.0]]))
    module(torch.tensor([[-1.0, 5.0]]))
    found = quantizer.quantizers_of("0")["input"]
    low, high = 0.99 * 0.0 + 0.01 * -1.0, 0.99 * 2.0 + 0.01 * 5.0
    torch.testing.assert_close(torch.stack(found.range()), torch.tensor([low, high]), rtol=1e-6, atol=1e-9)
    assert found.scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
    assert found.zero_point.item() == round(-low / ((high - low) / 255))
    module.eval()(torch.tensor([[-9.0, 9.0]]))
    assert found.scale.item() == pytest.approx((high - low) / 255, rel=1e-6), "ranges are frozen in eval mode"


def test_qat_rounds_from_the_start_step_on() -> None:
    model = linear([[0.3, -1.0]])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    entry = {"op_types": ["Linear"], "quant_types": ["weight"], "quant_bits": 2, "quant_start_step": 2}
    module = QAT_Quantizer(model, [entry], optimizer, example_inputs=torch.zeros(1, 2)).compress().train()
    for step in range(4):
        output = module(torch.tensor([[1.0, 0.0]]))
        assert (output.item() in (0.0, 1.0, -1.0)) == (step >= 2), "2 bits hold -s, 0 and s"
        output.sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_qat_gradients_pass_within_the_range_only() -> None:
    entry = {"op_types": ["Linear"], "quant_types": ["input"], "quant_bits": 8}
    quantizer = QAT_Quantizer(linear([[1.0, 2.0, 3.0]]), [entry], example_inputs=torch.zeros(1, 3))
    module = quantizer.compress().train()
    module(torch.tensor([[-1.0, 0.0, 1.0]]))
    x = torch.tensor([[-3.0, 0.5, 3.0]], requires_grad=True)
    module.eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0, 0.0]]


# -- the others, by hand ---------------------------------------------------------------------------------
def rounded_weight(quantizer: Quantizer, features: int) -> Tensor:
    module = quantizer.compress().eval()
    output: Tensor = module(torch.eye(features))
    return output.T.detach()


def test_naive_rounds_weights_to_127_steps_of_every_channel() -> None:
    model = linear([[1.27, 0.014, -0.016], [0.5, 0.25, -0.127]])
    got = rounded_weight(NaiveQuantizer(model, [{"quant_bits": 8}], example_inputs=torch.eye(3)), 3)
    step = 0.5 / 127
    expected = torch.tensor([[1.27, 0.01, -0.02], [0.5, 64 * step, -32 * step]])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_dorefa_by_its_formula(bits: int) -> None:
    weight = [[0.9, -0.2, 0.05, -1.5]]
    config = [{"quant_bits": bits}]
    got = rounded_weight(DoReFaQuantizer(linear(weight), config, example_inputs=torch.eye(4)), 4)
    n = 2**bits - 1
    largest = max(abs(math.tanh(w)) for w in weight[0])
    expected = [2 * round((math.tanh(w) / (2 * largest) + 0.5) * n) / n - 1 for w in weight[0]]
    torch.testing.assert_close(got, torch.tensor([expected]), rtol=1e-6, atol=1e-6)


def test_dorefa_gradient_is_that_of_the_bounded_weight() -> None:
    model = linear([[0.9, -0.2]])
    module = DoReFaQuantizer(model, [{"quant_bits": 2}], example_inputs=torch.eye(2)).compress().train()
    module(torch.ones(1, 2)).sum().backward()
    weight = model.get_parameter("0.weight")
    expected = (1 - weight.detach().tanh() ** 2) / weight.detach().tanh().abs().max()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected)


def test_bnn_takes_signs_and_clips_the_gradient() -> None:
    model = linear([[0.5, -2.0, 0.0]])
    config = [{"op_types": ["Linear"], "quant_types": ["weight", "output"]}]
    quantizer = BNNQuantizer(model, config, example_inputs=torch.eye(3))
    module = quantizer.compress().train()
    assert module(torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.7, 0.0]])).flatten().tolist() == [1.0, -1.0]
    module(torch.tensor([[0.1, 0.2, 0.3]])).sum().backward()
    weight = model.get_parameter("0.weight").grad
    assert weight is not None
    torch.testing.assert_close(weight, torch.tensor([[0.1, 0.0, 0.3]]))


def test_lsq_begins_at_twice_the_mean_magnitude_and_learns_its_step() -> None:
    model = linear([[0.9, -0.2, 0.05, -1.5]])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    entry = {"quant_types": ["weight"], "quant_bits": 3, "quant_scheme": "per_tensor_symmetric"}
    quantizer = LSQQuantizer(
        model, [{"op_types": ["Linear"], **entry}], optimizer, example_inputs=torch.eye(4)
    )
    module = quantizer.compress().train()
    module(torch.eye(4)).sum().backward()
    scale = quantizer.quantizers_of("0")["weight"].scale
    weight = torch.tensor([0.9, -0.2, 0.05, -1.5])
    s = 2 * weight.abs().mean().item() / math.sqrt(3)
    assert scale.item() == pytest.approx(s, rel=1e-6)
    v = weight / s
    gradient = torch.where(v >= 3, 3.0, torch.where(v <= -3, -3.0, torch.round(v) - v)).sum()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(gradient.item() / math.sqrt(4 * 3), rel=1e-4)
    optimizer.step()
    assert scale.item() != pytest.approx(s, rel=1e-4), "the optimizer given to the quantizer trains the step"
    assert optimizer.param_groups[-1]["weight_decay"] == 0.0


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse", "entropy"])
def test_ptq_calibrates_on_data_and_training_moves_nothing(observer: str) -> None:
    model = convnet()
    quantizer = PTQ_Quantizer(model, [{"quant_bits": 8}], data=[IMAGES[:4], IMAGES[4:]], observer=observer)
    module = quantizer.compress()
    expected = model(IMAGES).detach()
    got = module.eval()(IMAGES).detach()
    assert float((got - expected).norm() / expected.norm()) < 0.03
    scales = {name: q.scale.clone() for name, q in quantizer.fake_quantizers.items()}
    module.train()(IMAGES * 7)
    assert all(torch.equal(q.scale, scales[name]) for name, q in quantizer.fake_quantizers.items())


# -- training --------------------------------------------------------------------------------------------
BITS = {"dynamic": 8}
"""Of quantizers that do not have 4."""


@pytest.mark.parametrize("name", sorted(QUANTIZERS))
def test_every_quantizer_trains_and_its_copies_are_the_same(name: str, tmp_path: Path) -> None:
    model, config = convnet(), [{"quant_bits": BITS.get(name, 4)}]
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    quantizer = QUANTIZERS[name](model, config, optimizer, example_inputs=IMAGES)
    module = quantizer.compress().train()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(IMAGES), LABELS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
    expected = module.eval()(IMAGES)
    assert torch.equal(copy.deepcopy(module)(IMAGES), expected)
    fresh = QUANTIZERS[name](convnet(), config, example_inputs=IMAGES).compress().eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(IMAGES), expected)
    fxcompress.save(module, tmp_path / "model.pt2")
    loaded = fxcompress.load(tmp_path / "model.pt2")
    assert torch.equal(loaded(IMAGES), expected)
    loaded.train()(IMAGES).sum().backward()


def test_compile_is_the_short_way() -> None:
    model = convnet()
    config = [{"quant_bits": 8, "quantizer": "ptq"}]
    module = fxcompress.compile(model, config, IMAGES, data=[IMAGES]).eval()
    other = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=IMAGES, data=[IMAGES]).compress().eval()
    assert torch.equal(module(IMAGES), other(IMAGES))


def test_pruning_and_quantization_in_one_list() -> None:
    config = [{"sparsity": 0.5, "op_names": ["0"]}, {"quant_bits": 8, "quantizer": "ptq"}]
    module = fxcompress.compile(convnet(), config, IMAGES, data=[IMAGES]).eval()
    masked = fxcompress.compile(convnet(), config[:1], IMAGES).eval()
    expected = masked(IMAGES).detach()
    assert float((module(IMAGES).detach() - expected).norm() / expected.norm()) < 0.03
    assert module.get_buffer("0.weight_mask").mean() == 0.5


# -- one's own -------------------------------------------------------------------------------------------
class YourQuantizer(Quantizer):
    """The seeds' example: every tensor is rounded to steps of a quarter."""

    name = "yours"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[str, str, int]] = []

    def quantize_weight(self, weight: Tensor, config: dict[str, Any], **kwargs: Any) -> Tensor:  # type: ignore[override]
        self.seen.append(("weight", kwargs["op_name"], config["quant_bits"]["weight"]))
        return torch.round(weight * 4) / 4

    def quantize_output(self, output: Tensor, config: dict[str, Any], **kwargs: Any) -> Tensor:  # type: ignore[override]
        self.seen.append(("output", kwargs["op_name"], config["quant_bits"]["output"]))
        return torch.round(output * 4) / 4


class ClipGrad(QuantGrad):
    """The seeds' example."""

    @staticmethod
    def quant_backward(tensor: Tensor, grad_output: Tensor, quant_type: QuantType) -> Tensor:
        if quant_type == QuantType.QUANT_OUTPUT:
            grad_output[torch.abs(tensor) > 1] = 0
        return grad_output


CONFIG = [{"op_types": ["Linear"], "quant_types": ["weight", "output"], "quant_bits": 6}]


def test_methods_of_ones_own_round() -> None:
    quantizer = YourQuantizer(linear([[0.3, -0.9], [2.1, 0.1]]), CONFIG, example_inputs=torch.eye(2))
    module = quantizer.compress()
    assert module(torch.tensor([[1.0, 0.3]])).tolist() == [[0.0, 2.0]]  # 0.25 − 0.3 and 2.0
    assert {*quantizer.seen} == {("weight", "0", 6), ("output", "0", 6)}


@pytest.mark.parametrize(("grad", "expected"), [(QuantGrad, [1.0, 1.0]), (ClipGrad, [1.0, 0.0])])
def test_gradients_of_ones_own(grad: type[QuantGrad], expected: list[float]) -> None:
    model = linear([[0.25, 0.0], [0.0, 2.0]])
    quantizer = YourQuantizer(model, CONFIG, example_inputs=torch.eye(2))
    quantizer.quant_grad = grad
    quantizer.compress().train()(torch.ones(1, 2)).sum().backward()
    gradient = model.get_parameter("0.weight").grad
    assert gradient is not None
    assert gradient[:, 0].tolist() == expected


def test_a_method_that_changes_the_shape_is_named() -> None:
    class Wrong(YourQuantizer):
        def quantize_weight(self, weight: Tensor, config: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
            return weight[:1]

    quantizer = Wrong(linear([[0.3, -0.9], [2.1, 0.1]]), CONFIG, example_inputs=torch.eye(2))
    module = quantizer.compress()
    with pytest.raises(FxcompressError, match=r"Wrong.quantize_weight of layer '0'.*\(2, 2\).*\(1, 2\)"):
        module(torch.eye(2))


# -- wrong configs ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cls", "entry", "message"),
    [
        (
            DoReFaQuantizer,
            {"quant_bits": 2, "quant_types": ["input"]},
            "quant_types: expected some of weight",
        ),
        (QAT_Quantizer, {"quant_bits": 0}, "quant_bits: expected an integer in 1..32"),
        (QAT_Quantizer, {"quant_bits": 1, "quant_types": ["weight"]}, "use quantizer 'bnn'"),
        (QAT_Quantizer, {"quant_bits": 8, "quantizer": "qatt"}, "did you mean 'qat'"),
        (QAT_Quantizer, {"quant_bits": 8, "op_names": ["9"]}, "'9' matches nothing"),
    ],
)
def test_a_wrong_config_is_named(cls: type[Quantizer], entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(convnet(), [entry], example_inputs=IMAGES).compress()


def test_an_unknown_observer_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'minmax'"):
        PTQ_Quantizer(convnet(), [{"quant_bits": 8}], observer="min_max")


def test_compress_is_called_once_and_first() -> None:
    quantizer = QAT_Quantizer(convnet(), [{"quant_bits": 8}], example_inputs=IMAGES)
    with pytest.raises(FxcompressError, match=r"call compress\(\) first"):
        _ = quantizer.fake_quantizers
    quantizer.compress()
    with pytest.raises(FxcompressError, match="called a second time"):
        quantizer.compress()


def test_a_quantizer_says_what_it_is() -> None:
    quantizer = QAT_Quantizer(convnet(), [{"quant_bits": 8}], example_inputs=IMAGES)
    text = str(quantizer.compress())
    assert "8-bit unsigned affine, moving_average" in text
    assert "8-bit signed symmetric, per slice of dimension 0, last" in text
    assert all(isinstance(q, FakeQuantize) for q in quantizer.fake_quantizers.values())
