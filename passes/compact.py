"""Compact layers that do without channels which others need: gather what one reads, scatter what one makes.

    y = conv(x)    →    y = scatter_channels(conv'(gather_channels(x, index, 1)), index', rest, 1)

Law: an identity. Both calls are inserted with an index of all channels; they cut the layer's axes off those
of the tensors around it, so that the next ``shrink`` takes out what the layer alone does not need: inputs
that it reads through zero weights or can fold, outputs that are constant. Those stayed before because another
consumer of ``x``, or another side of an addition with ``y``, needs them.

Moving elements costs time as well, so a layer is compacted only where the multiply-accumulates it saves are
worth more (``Costs``, counted for one example of the captured shapes: the same choice on every machine). What
is inserted was tried: after an analysis of the graph with the calls in it, those that do not gain what was
expected are taken out again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.graph.calls import PROBE, Call, Ref, TensorInfo
from fxcompress.graph.cost import layer_of
from fxcompress.graph.module import CompiledModule, erase_unread, free_name
from fxcompress.passes.propagate import Analysis
from fxcompress.rules.axes import Axis, AxisMap
from fxcompress.rules.contraction import WeightedRule
from fxcompress.rules.registry import rule_for


@dataclass(frozen=True)
class Costs:
    """What compacting a layer costs, in multiply-accumulates (MACs) of layers that take the same time."""

    per_element: float
    """Each element that a gather or a scatter writes."""
    per_call: float
    """Each gather or scatter, however small."""
    share: float
    """This part of the layer's MACs: kernels work on blocks of channels, and a few less save no time."""


COSTS = Costs(per_element=30.0, per_call=10_000.0, share=0.15)
"""From ``benchmarks/compaction.py`` (``results/long/compaction.json``)."""


@dataclass(frozen=True)
class _Size:
    """A layer at some width: ``inputs`` and ``outputs`` are channels, the others are counted per example."""

    inputs: int
    outputs: int
    read: int
    """Positions of the input."""
    made: int
    """Positions of the output."""
    per_pair: float
    """MACs for each pair of an input and an output channel."""

    @property
    def macs(self) -> float:
        return self.inputs * self.outputs * self.per_pair


@dataclass
class _Layer:
    """A call that sums weight × channel, and what was inserted around it."""

    call: Call
    source: fx.Node
    dim: int
    """The channels, of the input and of the output."""
    weight: Tensor
    full: _Size
    """Without compaction."""
    inputs: int
    """Channels that the layer needs."""
    outputs: int
    """Channels that it has to compute."""
    gather: fx.Node | None = None
    scatter: fx.Node | None = None


def compact(module: CompiledModule, found: Analysis, *, round_to: int | None = None) -> Analysis:
    """Insert gathers and scatters where they pay, in place; ``shrink`` then has to remove what they free.

    Args:
        found: the analysis of ``module``.
        round_to: as ``live_slices`` takes it.

    Returns:
        The analysis of the graph as it is now; ``found`` itself if nothing was inserted.
    """
    layers = [layer for layer in _layers(found) if _insert(module, layer)]
    while layers:
        analysis = Analysis.of(module, round_to)
        useless = [node for layer in layers for node in _useless(layer, analysis)]
        for node in useless:
            _bypass(module, node)
        for layer in layers:
            layer.gather = None if layer.gather in useless else layer.gather
            layer.scatter = None if layer.scatter in useless else layer.scatter
        layers = [layer for layer in layers if layer.gather or layer.scatter]
        if not useless:
            return Analysis.of(module, round_to) if _share(module, layers, analysis) else analysis
    return found


def compacted_layers(graph: fx.Graph) -> set[str]:
    """Names of the layers behind a gather or before a scatter."""
    inserted = (ops.gather_channels, ops.scatter_channels)
    moved = [node for target in inserted for node in graph.find_nodes(op="call_function", target=target)]
    beside = [n for node in moved for n in (*node.users, node.args[0]) if n.op != "placeholder"]
    return {layer_of(node) for node in beside if node not in moved}


# -- which layers, and what it costs ---------------------------------------------------------------------
def _layers(found: Analysis) -> Iterator[_Layer]:
    """Calls of weighted operators on activations, as they will be without compaction, in order."""
    flow, values = found.flow, found.values
    for contraction in flow.map.contractions:
        call, source, rule = contraction.call, contraction.source, rule_for(contraction.call)
        if not isinstance(rule, WeightedRule) or not isinstance(source, fx.Node) or contraction.outer is None:
            continue
        weight, need = values.known(call.args[rule.weight]), rule.need(contraction, values)
        unruled = str(call.node) in flow.map.unruled.get(call.op, ())
        if weight is None or need is None or unruled or values.known(source) is not None:
            continue
        size = _size(call, flow.map, source, contraction.dim, weight)
        inputs, outputs = found.kept[id(contraction.inner.find())], found.kept[id(contraction.outer.find())]
        constants = values.slices(call.node, contraction.dim)
        varying = outputs if constants is None else outputs & constants.isnan().numpy()
        full = replace(size, inputs=int(inputs.sum()), outputs=int(outputs.sum()))
        wanted = max(int((inputs & need.of(varying)).sum()), 1), max(int(varying.sum()), 1)
        if not contraction.inner.dynamic and wanted != (full.inputs, full.outputs):
            yield _Layer(call, source, contraction.dim, weight, full, *wanted)


def _size(call: Call, axis_map: AxisMap, source: Ref, dim: int, weight: Tensor) -> _Size:
    read, made = _positions(axis_map.of[source], dim), _positions(axis_map.of[call.node], dim)
    taps = math.prod(weight.shape[2:]) / call.get("groups", 1)
    return _Size(0, 0, read, made, taps * (read if call.op.startswith("conv_transpose") else made))


def _positions(axes: tuple[Axis, ...], channels: int) -> int:
    """How many vectors of channels one example has."""
    others = [axis for d, axis in enumerate(axes) if d != channels]
    examples = PROBE if any(axis.dynamic for axis in others) else 1
    return max(math.prod(axis.size for axis in others) // examples, 1)


def _cost(full: _Size, size: _Size, gather: bool, scatter: int) -> float:
    """In MACs, of a layer of ``size`` in place of ``full``, with a gather in front and a scatter into so many
    channels behind.
    """
    calls = gather + (scatter > 0)
    moved = size.inputs * size.read * gather + scatter * size.made
    fixed = COSTS.share * full.macs if calls else 0.0
    return size.macs + fixed + COSTS.per_element * moved + COSTS.per_call * calls


# -- inserting -------------------------------------------------------------------------------------------
def _insert(module: CompiledModule, layer: _Layer) -> bool:
    """Insert what is cheapest around a layer; returns whether anything was."""
    full = layer.full

    def cost(choice: tuple[bool, ...]) -> float:
        gather, scatter = choice
        inputs, outputs = layer.inputs if gather else full.inputs, layer.outputs if scatter else full.outputs
        size = replace(full, inputs=inputs, outputs=outputs)
        return _cost(full, size, gather, full.outputs * scatter)

    gather, scatter = min(itertools.product((False, True), repeat=2), key=cost)
    if gather:
        _insert_gather(module, layer)
    if scatter:
        _insert_scatter(module, layer)
    return gather or scatter


def _insert_gather(module: CompiledModule, layer: _Layer) -> None:
    node, facts = layer.call.node, _facts(layer.source)
    scattered = (n for n in layer.source.users if n.target is ops.scatter_channels and node in n.users)
    source = next(scattered, layer.source)  # the layer in front may have got a scatter just now
    with module.graph.inserting_before(node):
        index = _buffer(module, "index", torch.arange(facts.shape[layer.dim]), layer)
        layer.gather = module.graph.call_function(ops.gather_channels, (source, index, layer.dim))
    layer.gather.meta["tensor"] = facts
    node.replace_input_with(source, layer.gather)


def _insert_scatter(module: CompiledModule, layer: _Layer) -> None:
    node, facts = layer.call.node, _facts(layer.call.node)
    channels = facts.shape[layer.dim]
    with module.graph.inserting_before(node):
        index = _buffer(module, "index", torch.arange(channels), layer)
        rest = _buffer(module, "rest", torch.zeros(channels, dtype=layer.weight.dtype), layer)
    with module.graph.inserting_after(node):
        layer.scatter = module.graph.call_function(ops.scatter_channels)
    layer.scatter.meta["tensor"] = facts
    node.replace_all_uses_with(layer.scatter)
    layer.scatter.args = (node, index, rest, layer.dim)


def _facts(node: fx.Node) -> TensorInfo:
    facts: TensorInfo = node.meta["tensor"]
    return facts


def _buffer(module: CompiledModule, kind: str, value: Tensor, layer: _Layer) -> fx.Node:
    """A new buffer of the model, and a node that reads it."""
    name = free_name(module, f"_compact_{kind}")
    module.register_buffer(name, value.to(layer.weight.device))
    node = module.graph.create_node("get_attr", name, (), {})
    node.meta["tensor"] = TensorInfo(tuple(value.shape), value.dtype, (False,))
    return node


# -- trying ----------------------------------------------------------------------------------------------
def _useless(layer: _Layer, trial: Analysis) -> list[fx.Node]:
    """Of what was inserted around a layer that which frees nothing; all of it if it costs more than it
    saves.
    """

    def width(node: fx.Node) -> int:
        return trial.count(trial.flow.axes(node)[layer.dim])

    inserted = [node for node in (layer.gather, layer.scatter) if node is not None]
    size = replace(layer.full, inputs=width(layer.gather or layer.source), outputs=width(layer.call.node))
    whole = 0 if layer.scatter is None else width(layer.scatter)
    if _cost(layer.full, size, layer.gather is not None, whole) >= layer.full.macs:
        return inserted
    return [node for node in inserted if width(node) == width(node.args[0])]  # type: ignore[arg-type]


def _share(module: CompiledModule, layers: list[_Layer], trial: Analysis) -> bool:
    """Let layers that gather the same channels of a tensor read one gather; returns whether any do."""
    first: dict[tuple[Any, bytes], fx.Node] = {}
    shared = False
    for layer in layers:
        if layer.gather is not None:
            part, source = trial.flow.axes(layer.gather)[layer.dim], layer.gather.args[0]
            gather = first.setdefault((source, trial.kept[id(part.find())].tobytes()), layer.gather)
            if gather is not layer.gather:
                _bypass(module, layer.gather)
                layer.call.node.replace_input_with(source, gather)  # type: ignore[arg-type]
                shared = True
    return shared


def _bypass(module: CompiledModule, node: fx.Node) -> None:
    """Let the readers of an inserted call read what it reads, and delete it with its buffers."""
    buffers = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    module.graph.erase_node(node)
    erase_unread(module.graph)
    for name in buffers:
        delattr(module, name)
