"""links: what does not follow a factor is no link, and the reason says so. Those that do: test_rescale."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.constants import Reading
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.links import Link, link_behind, maker_of
from tests.helpers import Function, image, ready

Body = Callable[[Any, Tensor], Any]


def link_of(module: CompiledModule, layer: str) -> Link | str:
    nodes = {n.name: n for n in module.graph.nodes}
    found = [n for n in module.graph.nodes if n.op == "call_module" and n.target == layer]
    named = [n for n in nodes.values() if n.all_input_nodes and n.all_input_nodes[0].target == layer]
    return link_behind(module, (found or named or [nodes.get(layer)])[0], Reading(module))


REFUSED: dict[str, tuple[Body, tuple[int, ...], dict[str, nn.Module], str]] = {
    "ReLU6": (
        lambda m, x: m.b(F.relu6(m.a(x))), (2, 3, 6, 6), {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3)},
        r"\(hardtanh\) clips at an upper end|\(relu6\) clips at an upper end",
    ),
    "GELU": (
        lambda m, x: m.b(F.gelu(m.a(x))), (2, 7, 3), {"a": nn.Linear(3, 4), "b": nn.Linear(4, 5)},
        r"gelu.*does not follow factors",
    ),
    "a residual": (
        lambda m, x: m.b(m.a(x)) + m.a.bias + F.relu(m.a.weight[0]), (2, 7, 3),
        {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}, "of a is shared with other calls",
    ),
    "a residual connection": (
        lambda m, x: (lambda h: m.b(h) + h)(m.a(x)), (2, 7, 3),
        {"a": nn.LayerNorm(3), "b": nn.Linear(3, 3)}, r"add.*does not follow factors",
    ),
    "an output": (
        lambda m, x: (lambda h: (m.b(h), h))(m.a(x)), (2, 7, 3),
        {"a": nn.Linear(3, 4), "b": nn.Linear(4, 3)}, "an output of the model",
    ),
    "a reader called twice": (
        lambda m, x: m.b(F.relu(m.b(m.a(x)))), (2, 7, 3), {"a": nn.Linear(3, 4), "b": nn.Linear(4, 4)},
        "weight of b is shared with other calls",
    ),
    "a LayerNorm without weight": (
        lambda m, x: m.b(m.a(x)), (2, 7, 3),
        {"a": nn.LayerNorm(3, elementwise_affine=False), "b": nn.Linear(3, 4)}, "no weight to rescale",
    ),
    "other channels": (
        lambda m, x: m.b(m.a(x)), (2, 3, 6, 4), {"a": nn.Conv2d(3, 4, 1), "b": nn.Linear(4, 5)},
        r"b \(linear\) reads it; its result does not follow",
    ),
    "channels flattened with positions": (
        lambda m, x: m.b(F.relu(m.a(x)).flatten(1)), (2, 3, 2, 2),
        {"a": nn.Conv2d(3, 4, 1), "b": nn.Linear(16, 5)}, r"flatten.*does not follow factors",
    ),
    "heads of as many features as there are channels": (
        lambda m, x: m.b(m.a(x).reshape(x.shape[0], 3, 3)), (2, 9),
        {"a": nn.Linear(9, 9), "b": nn.Linear(3, 5)}, r"reshape.*does not follow factors",
    ),
    "pooling across channels": (
        lambda m, x: m.b(F.max_pool2d(m.a(x), (1, 2))), (2, 3, 6, 4),
        {"a": nn.Linear(4, 6), "b": nn.Linear(3, 5)}, r"max_pool2d.*does not follow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_follow_a_factor_is_no_link(name: str) -> None:
    body, shape, layers, reason = REFUSED[name]
    module = fxcompress.capture(ready(Function(body, **layers)), image(*shape))
    found = link_of(module, "a")
    assert isinstance(found, str), str(found)
    assert re.search(reason, found), found


def test_masked_weights_are_no_link() -> None:
    model = ready(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    module = fxcompress.compile(model, [{"sparsity": 0.5, "op_names": ["0"]}], image(2, 3))
    found = link_of(module, "0")
    assert isinstance(found, str)
    assert "weight of 0 is masked: speed the model up first" in found


def test_the_maker_is_found_behind_what_follows_a_factor() -> None:
    body: Body = lambda m, x: m.b(F.max_pool2d(F.relu(m.a(x)), 2))  # noqa: E731
    layers = {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3)}
    module = fxcompress.capture(ready(Function(body, **layers)), image(2, 3, 8, 8))
    a, b = [node for node in module.graph.nodes if node.target in ("a", "b")]
    assert maker_of(a) is next(iter(module.graph.nodes))
    assert maker_of(b) is a
