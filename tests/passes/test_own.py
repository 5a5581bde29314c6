"""own: a call reads what it is given, and the model it came from keeps its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import PassError
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from fxcompress.passes.own import own
from tests.helpers import Function, image, ready, run, target_name


class Plain(nn.Module):
    """A linear layer without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w)


MODELS: dict[str, Any] = {
    "a layer": lambda: nn.Sequential(nn.Linear(3, 2)),
    "one without a bias": lambda: nn.Sequential(nn.Linear(3, 2, bias=False)),
    "under an absorbed norm": lambda: nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)),
    "a functional call": Plain,
    "a norm": lambda: Function(lambda m, x: m.n(x)[:, :2], n=nn.LayerNorm(3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_call_reads_what_it_is_given(name: str) -> None:
    model, x = ready(MODELS[name]()), image(4, 3)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    module = fxcompress.capture(model, x)
    absorb_batch_norm(module)
    calls = (n for n in module.graph.nodes if n.op in ("call_module", "call_function"))
    node = next(n for n in calls if target_name(n) in ("0", "call", "linear", "n"))
    shape = (3,) if name == "a norm" else (2, 3)
    weight, bias = image(*shape, seed=2), image(shape[0], seed=3)
    names = [own(module, node, argument, value) for argument, value in (("weight", weight), ("bias", bias))]
    module.graph.lint()
    module.recompile()
    expected = F.layer_norm(x, (3,), weight, bias)[:, :2] if name == "a norm" else F.linear(x, weight, bias)
    torch.testing.assert_close(run(module, (x,)), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module.get_parameter(names[0]), weight)
    assert torch.equal(module.get_parameter(names[1]), bias)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert set(model.state_dict()) == set(state)


def test_frozen_parameters_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    module = fxcompress.capture(model, torch.ones(2, 3))
    node = next(n for n in module.graph.nodes if n.target == "0")
    assert not module.get_parameter(own(module, node, "weight", torch.zeros(2, 3))).requires_grad


def test_only_calls_have_operands() -> None:
    module = fxcompress.capture(nn.Sequential(nn.Linear(3, 2)), torch.ones(2, 3))
    with pytest.raises(PassError, match="no operator, so it has no operand 'bias'"):
        own(module, next(iter(module.graph.nodes)), "bias", torch.zeros(2))
