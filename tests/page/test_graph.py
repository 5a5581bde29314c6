"""The picture's graph: layers and joins, their order, and blocks where there are many."""

from __future__ import annotations

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


def edges(graph: Graph) -> set[tuple[str, str]]:
    return {(graph.nodes[a].name, graph.nodes[b].name) for a, b in graph.edges}


def graph_of(model: nn.Module, x: Tensor, limit: int = 60) -> Graph:
    module = fxcompress.capture(ready(model).float(), x)
    layers = collect(make_report(module, module, x), Extras(), latency=False).layers
    return layer_graph(module, layers, limit=limit)


def drawn(module: CompiledModule, small: CompiledModule) -> Graph:
    return layer_graph(module, collect(small, Extras(), latency=False).layers)


def test_a_masked_graph_has_layers_and_joins_and_no_masks() -> None:
    masked, small = pruned()
    graph = drawn(masked, small)
    assert edges(graph) == EDGES
    assert len(graph.nodes) == 7
    conv = next(node for node in graph.nodes if node.name == "block.conv1")
    assert conv == GraphNode("block.conv1", "layer", "Conv2d", 1, Change(8, 4), Change(584, 292))


def test_the_graph_after_is_drawn_alike() -> None:
    masked, small = pruned()
    assert drawn(small, small) == drawn(masked, small)


def test_a_quantized_graph_has_no_fake_quantize_nodes() -> None:
    x = torch.randn(2, 3, 8, 8)
    module = fxcompress.compile(ready(Net()).float(), [{"quant_bits": 8, "quantizer": "ptq"}], x, data=[x])
    layers = collect(make_report(module, module, x), Extras(), latency=False).layers
    assert edges(layer_graph(module, layers)) == EDGES


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
    assert graph.edges == ((0, 1), (1, 2), (2, 3))


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


def test_a_flat_chain_is_drawn_in_runs_and_keeps_its_ends() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(100)))
    graph = graph_of(model, torch.randn(2, 4), limit=12)
    assert len(graph.nodes) == 12
    assert (graph.nodes[0].kind, graph.nodes[-1].kind) == ("input", "output")
    assert (graph.nodes[1].name, graph.nodes[1].layers) == ("0 … 9", 10)
    assert graph.edges == tuple((i, i + 1) for i in range(11))
