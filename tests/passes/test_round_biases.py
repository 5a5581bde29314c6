"""round_biases: biases are multiples of the product of both scales in training already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress import ops
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.convert import convert
from fxcompress.quantization import QUANTIZERS, PTQ_Quantizer
from tests.helpers import Function, image, ready, run

X = image(4, 3, 8, 8).float()


def convnet() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(m.norm(m.a(x))), 2)
        out: Tensor = m.fc(F.adaptive_avg_pool2d(F.relu(m.b(y)), 1).flatten(1))
        return out

    layers = {"a": nn.Conv2d(3, 6, 3, bias=False), "norm": nn.BatchNorm2d(6), "b": nn.Conv2d(6, 6, 3)}
    return ready(Function(forward, **layers, fc=nn.Linear(6, 4))).float()


def rounded(module: CompiledModule) -> list[str]:
    nodes = module.graph.find_nodes(op="call_function", target=ops.round_bias)
    return [str(next(iter(node.users)).args[0]) for node in nodes]


def test_by_hand() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -0.5], [0.25, 0.75]]))
        layer.bias.copy_(torch.tensor([0.1, -0.3]))
    x = torch.tensor([[1.0, 0.5], [0.0, 3.0]])
    scale = {"weight": "power_of_two", "input": "power_of_two"}
    config = [
        {"quant_bits": {"weight": 3, "input": 4}, "quant_scale": scale, "quant_types": ["weight", "input"]}
    ]
    module = PTQ_Quantizer(nn.Sequential(layer), config, example_inputs=x, data=[x]).compress().eval()
    # s_x = 3/15 → 1/4, s_w = 1/3 → 1/2 and 0.75/3 = 1/4: multiples of 1/8 and of 1/16, halves to even
    assert module(torch.zeros(1, 2)).tolist() == [[0.125, -0.3125]]
    module(torch.zeros(1, 2)).sum().backward()
    assert layer.bias.grad is not None
    assert layer.bias.grad.tolist() == [1.0, 1.0], "straight through"


def test_convert_changes_nothing_more() -> None:
    config = [{"quant_bits": 8, "quant_scale": "power_of_two"}]
    quantizer = PTQ_Quantizer(convnet(), config, example_inputs=X, data=[X])
    module = quantizer.compress().eval()
    assert len(rounded(module)) == 3
    assert torch.equal(run(convert(module), (X,)), run(module, (X,)))


@pytest.mark.parametrize("scale", ["float", {"weight": "power_of_two"}, {"input": "power_of_two"}])
def test_at_other_scales_biases_are_left_alone(scale: Any) -> None:
    config = [{"quant_bits": 8, "quant_scale": scale}]
    assert rounded(PTQ_Quantizer(convnet(), config, example_inputs=X, data=[X]).compress()) == []


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (nn.ConvTranspose2d(3, 6, 3, groups=3), {}),
        (nn.Conv2d(3, 6, 3), {"quant_scheme": {"input": "per_channel_affine"}}),
    ],
    ids=["groups share scales", "the input has a scale per channel"],
)
def test_where_a_bias_has_no_one_scale_it_is_left_alone(layer: nn.Module, keys: dict[str, Any]) -> None:
    config = [{"quant_bits": 8, "quant_scale": "power_of_two", **keys}]
    module = PTQ_Quantizer(nn.Sequential(layer), config, example_inputs=X, data=[X]).compress().eval()
    assert rounded(module) == []
    assert bool(module(X).isfinite().all())


def test_biases_are_floats_until_rounding_begins() -> None:
    model = convnet()
    expected = run(model, (X,))
    config = [{"quant_bits": 8, "quant_scale": "power_of_two", "quant_start_step": 1}]
    module = QUANTIZERS["qat"](model, config, example_inputs=X).compress()
    assert torch.allclose(module.train()(X), expected, rtol=1e-5, atol=1e-6)


def test_accuracy_methods_still_see_the_bias() -> None:
    config = [{"quant_bits": 4, "quant_scale": "power_of_two"}]
    options: dict[str, Any] = {"bias_correction": True, "adaround": 20}
    quantizer = PTQ_Quantizer(convnet(), config, example_inputs=X, data=[X], **options)
    module = quantizer.compress()
    assert quantizer.outcomes["bias_correction"].done == ("a", "b", "fc")
    assert len(rounded(module)) == 3


def test_a_file_keeps_it(tmp_path: Any) -> None:
    config = [{"quant_bits": 8, "quantizer": "ptq", "quant_scale": "power_of_two"}]
    module = fxcompress.compile(convnet(), config, X, data=[X]).eval()
    fxcompress.save(module, tmp_path / "m.pt2")
    loaded = fxcompress.load(tmp_path / "m.pt2")
    assert len(rounded(loaded)) == 3
    assert torch.equal(run(loaded, (X,)), run(module, (X,)))
