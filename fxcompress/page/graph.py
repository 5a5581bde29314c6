"""The graph of a model at the granularity of its layers, small enough to look at.

    fx nodes  →  layers with weights of two dimensions or more, joins (add, cat, attention), inputs, outputs

What lies between (norms, activations, views) is on the edge. More than ``limit`` nodes are drawn as blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from fxcompress import ops
from fxcompress.graph.calls import base_name
from fxcompress.graph.cost import layer_of
from fxcompress.page.blocks import blocks
from fxcompress.page.data import Graph, GraphNode, Layer
from fxcompress.report import Change

LIMIT = 60
"""Nodes that a picture may have before they are drawn as blocks."""
_SIZES = ("sym_size", "sym_numel", "sym_stride")


@dataclass(frozen=True)
class _Step:
    """A node of the picture, its place in the module hierarchy, and the classes of the modules above it."""

    node: GraphNode
    place: tuple[str, ...]
    classes: Mapping[str, str]


def layer_graph(module: fx.GraphModule, layers: Sequence[Layer], *, limit: int = LIMIT) -> Graph:
    """The layers of ``module`` and which reads which.

    Args:
        module: a captured module, with or without masks.
        layers: the figures of its layers.
        limit: how many nodes there may be before they are drawn as blocks.
    """
    wide = {layer.name: layer for layer in layers if layer.is_matrix}
    steps: list[_Step] = []
    edges: list[tuple[int, int]] = []
    drawn: dict[fx.Node, tuple[int, ...]] = {}  # node → the steps its value comes from
    for node in module.graph.nodes:
        if node.op == "get_attr" or _is_size(node):
            drawn[node] = ()
            continue
        sources = tuple(dict.fromkeys(s for read in node.all_input_nodes for s in drawn[read]))
        names = [layer_of(node), *_read_weights(node, drawn)]
        layer = next((wide[name] for name in names if name in wide), None)
        made = _step(node, layer, len(sources))
        if made is not None:
            edges.extend((source, len(steps)) for source in sources)
            sources = (len(steps),)
            steps.append(made)
        drawn[node] = sources
    return _collapsed(steps, edges, limit)


def _is_size(node: fx.Node) -> bool:
    """Whether it yields a number that views are made with, no value of the network."""
    return node.op == "call_function" and base_name(node.target).startswith(_SIZES)


def _step(node: fx.Node, layer: Layer | None, sources: int) -> _Step | None:
    """What ``node`` is in the picture, ``None`` where it lies on an edge."""
    stack = node.meta.get("nn_module_stack") or {}
    classes = {path: str(kind).rpartition(".")[2] for path, kind in stack.values()}
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
        return _Step(GraphNode(str(node.target), kind), (str(node.target),), {})
    if layer is not None and (sources or node.op == "call_module" or node.target is ops.call):
        made = GraphNode(layer.name, "layer", layer.type, 1, layer.channels, layer.parameters)
        return _Step(made, tuple(layer.name.split(".")), classes)
    if sources < 2:
        return None
    op = node.name if isinstance(node.target, str) else base_name(node.target).removeprefix("fxcompress.")
    scope = list(classes)[-1] if classes else ""
    return _Step(GraphNode(op, "join"), (*filter(None, scope.split(".")), node.name), classes)


def _read_weights(node: fx.Node, drawn: Mapping[fx.Node, tuple[int, ...]]) -> Iterator[str]:
    """Parameters that ``node`` reads, directly or multiplied by a mask."""
    for source in node.all_input_nodes:
        if not drawn[source]:
            yield from (str(n.target) for n in (source, *source.all_input_nodes) if n.op == "get_attr")


def _collapsed(steps: Sequence[_Step], edges: Sequence[tuple[int, int]], limit: int) -> Graph:
    """The steps in blocks, inputs and outputs as they are."""
    inner = [i for i, step in enumerate(steps) if step.node.kind not in ("input", "output")]
    ends = [i for i in range(len(steps)) if i not in set(inner)]
    found = blocks([steps[i].place for i in inner], max(1, limit - len(ends)))
    runs = [("", [i]) for i in ends] + [(name, [inner[i] for i in run]) for name, run in found]
    runs.sort(key=lambda run: run[1])
    position = {i: number for number, (_, run) in enumerate(runs) for i in run}
    pairs = dict.fromkeys((position[a], position[b]) for a, b in edges)
    nodes = (_block(name, [steps[i] for i in run]) for name, run in runs)
    return Graph(tuple(nodes), tuple((a, b) for a, b in pairs if a != b))


def _block(name: str, steps: Sequence[_Step]) -> GraphNode:
    """One node for several."""
    if len(steps) == 1:
        return steps[0].node
    kind = next((step.classes[name] for step in steps if name in step.classes), "")
    sizes = {s.node.name: s.node.parameters for s in steps if s.node.parameters is not None}
    total = Change(sum(c.before for c in sizes.values()), sum(c.after for c in sizes.values()))
    return GraphNode(name, "block", kind, len(sizes), None, total)
