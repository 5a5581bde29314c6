"""The graph of a model at the granularity of its layers, small enough to look at.

    fx nodes  →  layers with weights of two dimensions or more, joins (add, cat, attention), inputs, outputs

What lies between (norms, activations, views) is on the edge. The modules before and after are drawn as one
graph whose nodes and edges know on which side they are, so that the two pictures of it can be compared. More
than ``limit`` nodes are drawn as blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

from torch import fx

from fxcompress import ops
from fxcompress.graph.calls import base_name
from fxcompress.graph.cost import layer_of
from fxcompress.page.blocks import Place, blocks
from fxcompress.page.data import Graph, GraphNode, Layer
from fxcompress.report import Change

LIMIT = 60
"""Nodes that a picture may have before they are drawn as blocks."""
_SIZES = ("sym_size", "sym_numel", "sym_stride")


@dataclass(frozen=True)
class _Step:
    """A node of the picture, its place in the module hierarchy, and the classes of the modules above it."""

    node: GraphNode
    place: Place
    classes: Mapping[str, str]


def layer_graph(
    before: fx.GraphModule | None,
    after: fx.GraphModule | None,
    layers: Sequence[Layer],
    *,
    limit: int = LIMIT,
) -> Graph | None:
    """The layers of two modules and which reads which, ``None`` of no module.

    Args:
        before: a captured module, with or without masks; ``None`` where it is gone.
        after: what became of it; likewise.
        layers: the figures of their layers.
        limit: how many nodes there may be before they are drawn as blocks.
    """
    wide = {layer.name: layer for layer in layers if layer.is_matrix}
    sides = [_Side.of(module, wide) for module in (before, after) if module is not None]
    if not sides:
        return None
    merged = _merged(sides[0], sides[-1])
    found = _collapsed(merged, limit)
    before_edges = None if before is None else found.before
    after_edges = None if after is None else found.after
    return Graph(found.nodes, before_edges, after_edges)


@dataclass(frozen=True)
class _Side:
    """The picture of one module: its steps in topological order, and pairs of their positions."""

    steps: list[_Step]
    edges: list[tuple[int, int]]

    @classmethod
    def of(cls, module: fx.GraphModule, wide: Mapping[str, Layer]) -> _Side:
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
        return cls(steps, edges)

    def keys(self) -> list[tuple[Place, str, int]]:
        """What tells the steps apart: their place, their kind, and which call of the same layer it is."""
        seen: Counter[tuple[Place, str]] = Counter()
        found = []
        for step in self.steps:
            key = step.place, step.node.kind
            found.append((*key, seen[key]))
            seen[key] += 1
        return found


@dataclass(frozen=True)
class _Merged:
    """Both sides in one order: steps with how often they are there, and the edges of each side."""

    steps: list[_Step]
    counts: list[Change]
    edges: tuple[list[tuple[int, int]], ...]


def _merged(old: _Side, new: _Side) -> _Merged:
    """An order of all steps in which those of either side keep theirs."""
    keys = old.keys(), new.keys()
    merged = _Merged([], [], ([], []))
    position: tuple[dict[int, int], ...] = ({}, {})
    for tag, i, i_end, j, j_end in SequenceMatcher(None, *keys, autojunk=False).get_opcodes():
        pairs: list[tuple[int | None, int | None]] = list(zip(range(i, i_end), range(j, j_end), strict=False))
        if tag != "equal":
            pairs = [*((k, None) for k in range(i, i_end)), *((None, k) for k in range(j, j_end))]
        for pair in pairs:
            for places, k in zip(position, pair, strict=True):
                if k is not None:
                    places[k] = len(merged.steps)
            merged.steps.append(new.steps[pair[1] or 0] if pair[0] is None else old.steps[pair[0]])
            merged.counts.append(Change(int(pair[0] is not None), int(pair[1] is not None)))
    for side, places, edges in zip((old, new), position, merged.edges, strict=True):
        edges.extend((places[a], places[b]) for a, b in side.edges)
    return merged


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


def _collapsed(merged: _Merged, limit: int) -> Graph:
    """The steps in blocks, inputs and outputs as they are."""
    steps = merged.steps
    inner = [i for i, step in enumerate(steps) if step.node.kind not in ("input", "output")]
    ends = [i for i in range(len(steps)) if i not in set(inner)]
    found = blocks([steps[i].place for i in inner], max(1, limit - len(ends)))
    runs = [("", [i]) for i in ends] + [(name, [inner[i] for i in run]) for name, run in found]
    runs.sort(key=lambda run: run[1])
    position = {i: number for number, (_, run) in enumerate(runs) for i in run}
    before, after = (
        tuple(dict.fromkeys((position[a], position[b]) for a, b in edges if position[a] != position[b]))
        for edges in merged.edges
    )
    nodes = (_block(name, [steps[i] for i in run], [merged.counts[i] for i in run]) for name, run in runs)
    return Graph(tuple(nodes), before, after)


def _block(name: str, steps: Sequence[_Step], counts: Sequence[Change]) -> GraphNode:
    """One node for several."""
    count = Change(sum(c.before for c in counts), sum(c.after for c in counts))
    if len(steps) == 1:
        return replace(steps[0].node, count=count)
    kind = next((step.classes[name] for step in steps if name in step.classes), "")
    sizes = {s.node.name: s.node.parameters for s in steps if s.node.parameters is not None}
    total = Change(sum(c.before for c in sizes.values()), sum(c.after for c in sizes.values()))
    return GraphNode(name, "block", kind, len(sizes), None, total, count)
