"""bake_masks: a fork in which parameters are what their masks made of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.bake_masks import bake_masks
from fxcompress.passes.insert_masks import insert_masks, mask_layer
from tests.helpers import EXACT, Function, image, ready, relative_error, row_mask, run, targets

X = image(3, 4)


def masked() -> CompiledModule:
    """A layer called twice, a weight tied to a functional call, and an activation's mask."""
    model = Function(
        lambda m, x: F.linear(torch.relu(m.a(m.a(x))), m.b.weight, m.a.bias) + m.b(x),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4, bias=False),
    )
    module = fxcompress.capture(ready(model), X)
    weight = module.get_parameter("b.weight")
    insert_masks(module, {"a.bias": row_mask(weight[:, 0], [2]), "b.weight": row_mask(weight, [1, 2])})
    mask_layer(module, "b", "output", torch.tensor([1.0, 0.0, 1.0, 1.0]))
    return module.eval()


def test_the_fork_computes_the_same_without_masks() -> None:
    module = masked()
    values = {name: value.clone() for name, value in module.state_dict().items()}
    fork = bake_masks(module)
    fork.graph.lint()
    assert relative_error(run(fork, (X,)), run(module, (X,))) <= EXACT
    assert targets(fork) == ["a", "a", "relu", "linear", "b", "mul", "add"]
    masks = [name for name in fork.state_dict() if "mask" in name]
    assert len(masks) == 1
    assert masks[0].startswith("_activation_mask")
    assert fork.get_parameter("b.weight")[[1, 2]].count_nonzero() == 0
    assert module.state_dict().keys() == values.keys()
    assert all(torch.equal(module.state_dict()[name], value) for name, value in values.items())


def test_what_was_not_masked_is_shared_and_frozen_parameters_stay_frozen() -> None:
    module = masked()
    module.get_parameter("b.weight").requires_grad_(False)
    fork = bake_masks(module)
    assert fork.get_parameter("a.weight") is module.get_parameter("a.weight")
    assert not fork.get_parameter("b.weight").requires_grad
    assert fork.get_parameter("a.bias").requires_grad


def test_tied_names_stay_tied() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    model = Function(lambda m, x: m.b(torch.relu(m.a(x))), a=a, b=b)
    module = fxcompress.capture(ready(model), X)
    insert_masks(module, {"a.weight": row_mask(module.get_parameter("a.weight"), [0])})
    fork = bake_masks(module)
    assert fork.get_parameter("a.weight") is fork.get_parameter("b.weight")
    assert relative_error(run(fork, (X,)), run(module, (X,))) <= EXACT


def test_a_module_without_masks_is_forked() -> None:
    module = fxcompress.capture(ready(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), X)
    assert targets(bake_masks(module)) == targets(module)
