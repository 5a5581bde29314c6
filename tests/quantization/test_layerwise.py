"""walk: floats and rounded values of every layer, and changes that later layers see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import FxcompressError
from fxcompress.graph.module import eval_mode
from fxcompress.quantization import PTQ_Quantizer
from fxcompress.quantization.layerwise import walk
from tests.helpers import image, ready, run

X = image(6, 4).float()


def quantized() -> tuple[nn.Module, PTQ_Quantizer]:
    model = ready(nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))).float()
    quantizer = PTQ_Quantizer(model, [{"quant_bits": 4}], example_inputs=X, data=[X])
    quantizer.compress()
    return model, quantizer


def test_layers_come_in_order_with_both_values_of_every_batch() -> None:
    model, quantizer = quantized()
    module = quantizer.bound_model
    assert module is not None
    layers = [n for n in module.graph.nodes if n.name in ("_0", "_2")]
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    with eval_mode(module):
        for layer in walk(module, [X[:4], X[4:]], layers):
            found[layer.node.name] = [t.clone() for t in layer.floats], [t.clone() for t in layer.rounded]
    assert list(found) == ["_0", "_2"]
    first = model.get_submodule("0")
    torch.testing.assert_close(torch.cat(found["_0"][0]), run(first, (X,)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat(found["_2"][0]), run(model, (X,)), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.cat(found["_2"][1]), run(module, (X,)))
    assert [len(t) for t in found["_0"][0]] == [4, 2]


def test_later_layers_see_what_a_visit_changed() -> None:
    _, quantizer = quantized()
    module = quantizer.bound_model
    assert module is not None
    layers = [n for n in module.graph.nodes if n.name in ("_0", "_2")]
    with eval_mode(module):
        for layer in walk(module, [X], layers):
            if layer.node.name == "_0":
                quantizer.quantizers_of("0")["weight"].quantizing = False
                module.get_parameter("0.bias").data.add_(0.5)
            else:
                last = layer.rounded[0].clone()
    assert torch.equal(last, run(module, (X,)))


def test_no_data_is_named() -> None:
    _, quantizer = quantized()
    module = quantizer.bound_model
    assert module is not None
    with pytest.raises(FxcompressError, match="expected at least one batch"):
        next(walk(module, [], []))
