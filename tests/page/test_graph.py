"""The picture's graph: layers and joins, their order, and blocks where there are many."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.page.collect import Extras, collect
from fxcompress.page.data import Graph, GraphNode
from fxcompress.page.graph import layer_graph
from fxcompress.report import Change, make_report
from tests.helpers import ready
from tests.page.example import Block, Net, pruned

EDGES = {
    ("x", "stem"),
    ("stem", "block.conv1"),
    ("block.conv1", "block.conv2"),
    ("stem", "add"),
    ("block.conv2", "add"),
    ("add", "head"),
    ("head", "output"),
}


def edges(graph: Graph, side: str = "before") -> set[tuple[str, str]]:
    return {(graph.nodes[a].name, graph.nodes[b].name) for a, b in getattr(graph, side)}


def compared(before: CompiledModule, after: CompiledModule, limit: int = 60) -> Graph:
    """The graph of two modules, with the figures of their layers."""
    report = make_report(before, after, before.example_inputs)
    layers = collect(report, Extras(), latency=False).layers
    graph = layer_graph(before, after, layers, limit=limit)
    assert graph is not None
    return graph


def graph_of(model: nn.Module, x: Tensor, limit: int = 60) -> Graph:
    module = fxcompress.capture(ready(model).float(), x)
    return compared(module, module, limit)


def test_a_masked_graph_has_layers_and_joins_and_no_masks() -> None:
    masked, small = pruned()
    graph = compared(masked, small)
    assert edges(graph) == edges(graph, "after") == EDGES
    assert len(graph.nodes) == 7
    conv = next(node for node in graph.nodes if node.name == "block.conv1")
    assert conv == GraphNode("block.conv1", "layer", "Conv2d", 1, Change(8, 4), Change(584, 292))


def test_of_a_module_that_is_gone_nothing_is_drawn() -> None:
    masked, small = pruned()
    layers = collect(small, Extras(), latency=False).layers
    graph = compared(masked, small)
    assert layer_graph(None, small, layers) == replace(graph, before=None)
    assert layer_graph(masked, None, layers) == replace(graph, after=None)
    assert layer_graph(None, None, layers) is None


class Branch(nn.Module):
    """A stem and a head with a branch beside what leads from the one to the other, or without it."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        if branch:
            self.side = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = self.head(x + self.side(F.relu(x)) if hasattr(self, "side") else x)
        return y


@pytest.mark.parametrize("old", [True, False])
def test_layers_and_joins_that_only_one_module_has_know_it(old: bool) -> None:
    x = torch.randn(2, 4)
    before, after = (fxcompress.capture(ready(Branch(side)).float(), x) for side in (old, not old))
    graph = compared(before, after)
    chain = {("x", "stem"), ("stem", "head"), ("head", "output")}
    around = {("x", "stem"), ("stem", "side"), ("stem", "add"), ("side", "add"), ("add", "head")}
    both = {("head", "output")} | around, chain
    assert (edges(graph), edges(graph, "after")) == (both if old else both[::-1])
    own = Change(1, 0) if old else Change(0, 1)
    counts = {node.name: node.count for node in graph.nodes}
    shared = dict.fromkeys(("x", "stem", "head", "output"), Change(1, 1))
    assert counts == {**shared, "side": own, "add": own}
    assert all(a < b for a, b in graph.edges)


def test_a_quantized_graph_has_no_fake_quantize_nodes() -> None:
    x = torch.randn(2, 3, 8, 8)
    module = fxcompress.compile(ready(Net()).float(), [{"quant_bits": 8, "quantizer": "ptq"}], x, data=[x])
    assert edges(compared(module, module)) == EDGES


class Sizes(nn.Module):
    """Views with sizes of another tensor, which are no values of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).view(x.size(0) * x.size(1), 6))
        return y


def test_sizes_make_no_joins() -> None:
    graph = graph_of(Sizes(), torch.randn(2, 3, 4))
    assert edges(graph) == {("x", "a"), ("a", "b"), ("b", "output")}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(F.relu(self.layer(x))))


def test_a_layer_that_is_called_twice_is_drawn_twice() -> None:
    graph = graph_of(Twice(), torch.randn(2, 4))
    assert [node.name for node in graph.nodes] == ["x", "layer", "layer", "output"]
    assert graph.before == graph.after == ((0, 1), (1, 2), (2, 3))


class Deep(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.stages = nn.Sequential(*(nn.Sequential(*(Block(4) for _ in range(n))) for n in (blocks, 1)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stages(self.stem(x))
        return y


def test_many_layers_are_drawn_as_the_modules_that_hold_them() -> None:
    graph = graph_of(Deep(3), torch.randn(2, 3, 8, 8), limit=8)
    names = ["x", "stem", "stages.0.0", "stages.0.1", "stages.0.2", "stages.1.0", "output"]
    assert [node.name for node in graph.nodes] == names
    assert graph.edges == tuple((i, i + 1) for i in range(6))
    block = graph.nodes[2]
    assert (block.kind, block.type, block.layers) == ("block", "Block", 2)
    assert block.parameters == Change(2 * (4 * 4 * 9 + 4), 2 * (4 * 4 * 9 + 4))
    assert block.count == Change(3, 3)  # two layers and the addition


def test_a_flat_chain_is_drawn_in_runs_and_keeps_its_ends() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(100)))
    graph = graph_of(model, torch.randn(2, 4), limit=12)
    assert len(graph.nodes) == 12
    assert (graph.nodes[0].kind, graph.nodes[-1].kind) == ("input", "output")
    assert (graph.nodes[1].name, graph.nodes[1].layers) == ("0 … 9", 10)
    assert graph.edges == tuple((i, i + 1) for i in range(11))
