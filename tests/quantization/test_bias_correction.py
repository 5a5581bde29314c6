"""Bias correction: the mean of every output channel is that of the float model again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.quantization import PTQ_Quantizer
from tests.helpers import Function, image, ready, relative_error, run

ONLY_WEIGHTS = {"quant_types": ["weight"], "op_types": ["Linear"]}


def test_the_mean_error_by_hand() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.4]]))
    x = torch.tensor([[1.0, 1.0], [0.0, 4.0], [2.0, 1.0]])
    entry = {**ONLY_WEIGHTS, "quant_bits": 2}  # −1, 0 and 1: 0.4 becomes 0
    quantizer = PTQ_Quantizer(
        nn.Sequential(layer).eval(), [entry], example_inputs=x, data=[x[:2], x[2:]], bias_correction=True
    )
    module = quantizer.compress().eval()
    assert module.get_parameter("0.bias").tolist() == pytest.approx([0.4 * (1 + 4 + 1) / 3])
    assert module(x).flatten().tolist() == pytest.approx([1.8, 0.8, 2.8])
    assert layer.bias is None
    assert quantizer.outcomes["bias_correction"].done == ("0",)
    assert quantizer.outcomes["bias_correction"].changed == ("0.bias",)
    assert "bias_correction: 1 done, 0 refused; 1 parameters are no longer those" in module.notes[-1]


def convnet() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 6, 3, bias=False), "n1": nn.BatchNorm2d(6), "c2": nn.Conv2d(6, 6, 3, padding=1),
        "fc": nn.Linear(6, 4, bias=False),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.n1(m.c1(x)))
        out: Tensor = m.fc(F.adaptive_avg_pool2d(F.relu(m.c2(y)), 1).flatten(1))
        return out

    return ready(Function(forward, **layers)).float()


def means(module: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Per channel, of what the layers yield."""
    found: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        return lambda _m, _i, y: found.__setitem__(name, y.detach().transpose(0, 1).flatten(1).mean(1))

    handles = [module.get_submodule(n).register_forward_hook(look(n)) for n in names]
    run(module, (x,))
    for handle in handles:
        handle.remove()
    return found


def test_every_layer_has_the_float_means_behind_corrected_layers() -> None:
    model, x = convnet(), image(6, 3, 8, 8).float()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    config: list[dict[str, Any]] = [{"quant_bits": {"weight": 3, "input": 4, "output": 4}}]
    errors = []
    for wanted in (False, True):
        quantizer = PTQ_Quantizer(
            model, config, example_inputs=x, data=iter([x[:4], x[4:]]), bias_correction=wanted
        )
        module = quantizer.compress().eval()
        errors.append(relative_error(run(module, (x,)).mean(0), run(model, (x,)).mean(0)))
    assert quantizer.outcomes["bias_correction"].done == ("c1", "c2", "fc")
    expected, got = means(model, x, ("c2", "fc")), means(module, x, ("c2", "fc"))
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-5 * float(value.abs().max()))
    assert errors[0] > 0.02
    assert errors[1] < 1e-5
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert "n1.bias" in dict(module.named_parameters())


def test_biases_that_are_not_the_layers_own_are_refused() -> None:
    model = ready(
        Function(lambda m, x: m.b(F.relu(m.a(F.relu(m.a(x))))), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    )
    x = image(5, 4).float()
    quantizer = PTQ_Quantizer(
        model.float(), [{"quant_bits": 4}], example_inputs=x, data=[x], bias_correction=True
    )
    quantizer.compress()
    assert quantizer.outcomes["bias_correction"].done == ("b",)
    assert (
        quantizer.outcomes["bias_correction"].refused
        == (("a", "it, or its bias, is shared with other calls"),) * 2
    )


def test_an_export_has_the_corrected_integers(tmp_path: Any) -> None:
    x = image(6, 3, 8, 8).float()
    module = PTQ_Quantizer(
        convnet(), [{"quant_bits": 8}], example_inputs=x, data=[x], bias_correction=True
    ).compress()
    report = fxcompress.export_onnx(module, tmp_path / "model.onnx")
    assert report.parity is not None
    assert (report.parity.mismatches, report.parity.all_integer) == (0, True)
