"""absorb_batch_norm: the norm's factors join the weight, its running statistics stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from tests.helpers import EXACT, Function, image, ready, relative_error, row_mask, run, targets

CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), image(2, 3, 5, 5)),
    "conv with bias": (lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6)), image(2, 3, 5)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.BatchNorm2d(8)), image(2, 4, 3, 3)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5)), image(2, 3, 4, 4)
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6)), image(4, 3)),
    "no affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, affine=False)), image(2, 3, 4, 4)
    ),
}  # fmt: skip


def absorbed(model: nn.Module, x: Tensor) -> tuple[CompiledModule, tuple[tuple[str, str], ...]]:
    module = fxcompress.capture(model, x)
    return module, absorb_batch_norm(module)


@pytest.mark.parametrize("name", CASES)
def test_the_result_computes_what_the_module_computes(name: str) -> None:
    make, x = CASES[name]
    model = ready(make())
    module, stayed = absorbed(model, x)
    module.graph.lint()
    assert stayed == ()
    assert "1" not in targets(module)
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT
    more = torch.cat([x, x[:1] * 0.5])
    assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT


def test_in_training_statistics_stay_and_all_parameters_learn() -> None:
    make, x = CASES["conv"]
    model = ready(make())
    module, _ = absorbed(model, x)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    expected = model(x)  # eval mode
    got = module.train()(x)
    assert relative_error(got, expected) <= EXACT
    for output, parameters in ((got, module), (expected, model)):
        output.square().sum().backward()
        assert all(p.grad is not None for p in parameters.parameters())
        if output is got:
            grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
            module.zero_grad()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert module.get_parameter("1.weight") is model.get_parameter("1.weight"), "an optimizer trains both"


def test_masked_weights_stay_masked() -> None:
    make, x = CASES["conv"]
    model = ready(make())
    module = fxcompress.capture(model, x)
    rows = row_mask(model.get_parameter("0.weight"), [1, 4])
    masked = fxcompress.apply_masks(module, {"0": {"weight": rows}})
    twin = masked.fork()
    absorb_batch_norm(twin)
    assert relative_error(run(twin, (x,)), run(masked, (x,))) <= EXACT


BODIES: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "read by others": (lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)), "also read by others"),
    "nothing in front": (lambda m, x: m.conv(m.bn(x.repeat(1, 2, 1, 1)[:, :6])), "no convolution"),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_cannot_be_absorbed_is_named(name: str) -> None:
    body, reason = BODIES[name]
    conv = nn.Conv2d(3 if name == "read by others" else 6, 6, 1)
    model = ready(Function(body, conv=conv, bn=nn.BatchNorm2d(6)))
    x = image(2, 3, 4, 4)
    module, stayed = absorbed(model, x)
    assert [norm for norm, _ in stayed] == ["bn"]
    assert reason in stayed[0][1]
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_only_the_layers_asked_for() -> None:
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2)
    model = ready(nn.Sequential(*layers))
    module = fxcompress.capture(model, CASES["conv"][1])
    absorb_batch_norm(module, ["2"])
    assert "1" in targets(module)
    assert "3" not in targets(module)
