"""Observers see values as they pass; the module computes what it did, and forgets them without a trace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.passes.observe import insert_observers, remove_observers
from tests.helpers import image, ready

X = image(2, 4)


def test_values_are_seen_and_nothing_changes() -> None:
    model = ready(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    module = fxcompress.capture(model, X)
    before, names = module.code, list(module.state_dict())
    relu = next(node for node in module.graph.nodes if node.name == "_1")
    seen: list[Tensor] = []
    insert_observers(module, {"any": (relu.name, seen.append)})
    assert torch.equal(module(X), model(X))
    assert torch.equal(seen[0], model.get_submodule("0")(X).relu())
    assert not seen[0].requires_grad
    assert list(module.state_dict()) == names
    remove_observers(module)
    assert module.code == before
    module(X)
    assert len(seen) == 1


def test_in_training_only_what_is_computed_with_gradients_is_seen() -> None:
    module = fxcompress.capture(ready(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), X)
    seen: list[bool] = []
    insert_observers(module, {"any": ("_0", lambda x: seen.append(torch.is_grad_enabled()))}, training=True)
    with torch.no_grad():
        module(X)
    assert seen == []
    module(X)
    assert seen == [False], "observers compute no gradients"
