"""remove_masks: the dense model again, operator for operator."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_masks import insert_masks, mask_layer, mask_names
from fxcompress.passes.remove_masks import remove_masks
from tests.generator import Network, Pruning, cases
from tests.helpers import Function, image, ready, relative_error, row_mask, run, targets
from tests.test_laws import FEW


def check_inverse(dense: CompiledModule, masked: CompiledModule, inputs: Any) -> None:
    """The same operators, names and, bit for bit, numbers."""
    removed = remove_masks(masked)
    assert targets(removed) == targets(dense)
    assert removed.state_dict().keys() == dense.state_dict().keys()
    assert mask_names(removed) == []
    assert relative_error(run(removed, inputs), run(dense, inputs)) == 0


def test_masks_of_tied_weights_biases_and_activations_go() -> None:
    model = Function(
        lambda m, x: F.linear(torch.relu(m.a(m.a(x))), m.b.weight, m.a.bias) + m.b(x),
        a=nn.Linear(4, 4),
        b=nn.Linear(4, 4, bias=False),
    )
    x = image(3, 4)
    dense, masked = (fxcompress.capture(ready(model), x).eval() for _ in range(2))
    weight = masked.get_parameter("b.weight")
    insert_masks(masked, {"a.bias": row_mask(weight[:, 0], [2]), "b.weight": row_mask(weight, [1, 2])})
    mask_layer(masked, "b", "output", torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert relative_error(run(masked, (x,)), run(dense, (x,))) > 0.01
    check_inverse(dense, masked, (x,))
    assert remove_masks(masked).get_parameter("b.weight") is weight
    assert len(mask_names(masked)) == 3


def test_statistics_run_over_everything_again() -> None:
    model = Function(
        lambda m, x: m.head(m.norm(m.a(x)) - m.a(x).mean(1, keepdim=True)),
        a=nn.Linear(4, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )
    x = image(3, 4)
    dense = fxcompress.capture(ready(model), x).eval()
    masked = fxcompress.compile(dense, [{"sparsity": 0.5, "op_names": ["a"]}])
    assert {"layer_norm", "mean"} <= {getattr(n.target, "__name__", "") for n in masked.graph.nodes}
    assert relative_error(run(masked, (x,)), run(dense, (x,))) > 0.01
    check_inverse(dense, masked, (x,))


@settings(FEW, max_examples=25)
@given(cases())
def test_removing_masks_undoes_what_any_pruner_inserts(case: tuple[Network, Pruning]) -> None:
    network, pruning = case
    inputs = network.inputs()
    dense = fxcompress.capture(network.model(), inputs)
    aware = pruning.dependency_aware
    masked = fxcompress.compile(dense, pruning.config, dependency_aware=aware) if pruning.config else dense
    check_inverse(dense, masked, inputs)
