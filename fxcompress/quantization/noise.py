"""What the rounding of some tensors costs: at the output of their layer, and at the output of the model.

    SQNR = 10 · log10(E[y²] / E[(y − ŷ)²])    in decibels; 20 dB are a tenth of the root mean square

``y`` is the value in floats, ``ŷ`` the one with some tensors rounded; means are over all elements of all
batches (Lin, Talathi, Annapureddy, Fixed Point Quantization of Deep Convolutional Networks, ICML 2016).
Biases stay float, as in the simulation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.errors import FxcompressError
from fxcompress.graph.calls import Call, call_of
from fxcompress.graph.inputs import leaves_of, naming_sizes
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.passes.insert_fake_quant import PASSING, quantizer_name, quantizers
from fxcompress.progress import shown
from fxcompress.quantization.layerwise import Runner, Values, last_reads
from fxcompress.quantization.placement import (
    CLIPPING,
    COMPUTING,
    FOLLOWING,
    clipped,
    layer_calls,
    operands_of,
    tensors_of,
)

Leaves = list[Any]
"""The values of a model's placeholders."""


@dataclass
class Ratio:
    """A signal and the noise in it, as sums of squares over the elements that were added."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Any, rounded: Any) -> None:
        """Take a value into account. What is no tensor of floating-point numbers is no signal."""
        if isinstance(exact, Tensor) and exact.is_floating_point():
            wide = exact.double()
            self.signal += float(wide.square().sum())
            self.noise += float((rounded.double() - wide).square().sum())

    @property
    def sqnr(self) -> float:
        """In decibels; infinite where there is no noise."""
        if self.noise == 0:
            return math.inf
        return decibels(self.noise / self.signal) if self.signal else -math.inf


def decibels(noise: float) -> float:
    """``−10 · log10(noise)`` of noise as a share of the signal; infinite for none."""
    return -10 * math.log10(noise) if noise else math.inf


@contextmanager
def measuring(module: CompiledModule) -> Iterator[None]:
    """Eval mode, no gradients, and everything rounds that can, whatever its start step.

    Raises:
        FxcompressError: if the module is not quantized, or a quantizer has seen no values yet.
    """
    found = quantizers(module)
    if not found:
        raise FxcompressError("expected a quantized module, got one without fake-quantize nodes")
    for name, quantizer in found.items():
        is_open = isinstance(quantizer, FakeQuantize) and not quantizer.calibrating
        if is_open and not quantizer.is_calibrated:
            raise FxcompressError(
                f"fake-quantize node {name!r} has seen no values yet; pass data=... to compile, or run the "
                "module in train mode first"
            )
    before = {quantizer: quantizer.quantizing for quantizer in found.values()}
    try:
        for quantizer in found.values():
            quantizer.quantizing = True  # type: ignore[assignment]
        with eval_mode(module), torch.no_grad():
            yield
    finally:
        for quantizer, state in before.items():
            quantizer.quantizing = state


@dataclass
class LocalErrors:
    """Noise at the output of one layer (behind the ReLU that follows it).

    ``alone``: with one of its tensors rounded, by its name; ``together``: with all of them; ``accumulated``:
    with everything in front of it rounded as well.
    """

    alone: dict[str, Ratio]
    together: Ratio
    accumulated: Ratio


Owners = Mapping[fx.Node, tuple[Call, LocalErrors]]


def local_errors(
    module: CompiledModule, batches: Iterable[Leaves], layers: Mapping[str, Collection[Call]]
) -> tuple[dict[str, LocalErrors], Ratio]:
    """The local errors of all ``layers`` (name → calls), and the noise at the output of the model with
    everything rounded. One walk per batch: a float and a rounded pass, and a call per rounded tensor.
    """
    found = {name: LocalErrors({}, Ratio(), Ratio()) for name in layers}
    owners = {call.node: (call, found[name]) for name, calls in layers.items() for call in calls}
    whole = Ratio()
    example = leaves_of(module.graph, module.example_inputs)
    for leaves in batches:
        with naming_sizes(leaves, example):
            _LocalWalk(module, leaves, owners).run(whole)
    return found, whole


class _LocalWalk:
    """One batch's values in floats, all rounded, and (``twins``) rounded once."""

    def __init__(self, module: CompiledModule, leaves: Leaves, owners: Owners) -> None:
        self._plain, self._rounding = Runner(module, rounding=False), Runner(module, rounding=True)
        self._graph = module.graph
        self._owners = owners
        placeholders = module.graph.find_nodes(op="placeholder")
        self._floats: Values = dict(zip(placeholders, leaves, strict=False))
        self._rounded: Values = dict(self._floats)
        self._twins: Values = {}

    def run(self, whole: Ratio) -> None:
        free = last_reads(self._graph)
        for node in self._graph.nodes:
            if node.op == "output":
                for source in node.all_input_nodes:
                    whole.add(self._floats[source], self._rounded[source])
            elif node.op != "placeholder":
                self._floats[node] = self._plain.value(node, self._floats)
                self._rounded[node] = self._rounding.value(node, self._rounded)
                self._twin(node)
                if node in self._owners:
                    self._compare(*self._owners[node])
            for source in free.get(node, ()):
                for values in (self._floats, self._rounded, self._twins):
                    values.pop(source, None)

    def _twin(self, node: fx.Node) -> None:
        """The value with one rounding: of a fake-quantize node, and of what passes its result on."""
        call = call_of(node)
        if node.target is ops.fake_quantize:
            self._twins[node] = self._rounding.value(node, self._floats)
        elif call is not None and call.op in PASSING:
            source = next((ref for _, ref in call.refs() if isinstance(ref, fx.Node)), None)
            if source in self._twins:
                self._twins[node] = self._with(node, {source: self._twins[source]})

    def _compare(self, call: Call, errors: LocalErrors) -> None:
        node, twins = call.node, self._twins
        changes = {tensor: {ref: twins[ref]} for tensor, ref in operands_of(call).items() if ref in twins}
        rounding = next((user for user in clipped(node).users if user.target is ops.fake_quantize), None)
        exact = self._behind(node, self._floats[node])
        all_of_them = {ref: value for change in changes.values() for ref, value in change.items()}
        together = self._behind(node, self._with(node, all_of_them))
        accumulated = self._behind(node, self._rounded[node])
        for tensor, change in changes.items():
            changed = self._behind(node, self._with(node, change))
            errors.alone.setdefault(tensor, Ratio()).add(exact, changed)
        if rounding is not None:
            end = clipped(node)
            alone, together, accumulated = (
                self._rounding.value(rounding, {**self._floats, **self._modules(rounding), end: y})
                for y in (exact, together, accumulated)
            )
            errors.alone.setdefault("output", Ratio()).add(exact, alone)
        errors.together.add(exact, together)
        errors.accumulated.add(exact, accumulated)

    def _modules(self, rounding: fx.Node) -> Values:
        """The quantizer that a fake-quantize node reads, which may come later in the graph."""
        owner = rounding.all_input_nodes[-1]
        return {owner: self._plain.value(owner, {})}

    def _with(self, node: fx.Node, change: Values) -> Any:
        """What ``node`` yields in floats with some operands replaced."""
        return self._plain.value(node, {**self._floats, **change})

    def _behind(self, node: fx.Node, value: Any) -> Any:
        """What the ReLU behind ``node`` makes of its ``value``."""
        end = clipped(node)
        return value if end is node else self._plain.value(end, {**self._floats, node: value})


def errors_at_output(
    module: CompiledModule, batches: Iterable[Leaves], groups: Mapping[str, Collection[str]], told: str
) -> dict[str, Ratio]:
    """The noise at the output of the model with one group of quantizers rounding (name → their names) and
    the rest float. For each group and batch what lies behind its tensors is run; the values of one batch are
    in memory.
    """
    found = {name: Ratio() for name in groups}
    for leaves in batches:
        values = _BatchValues(module, leaves)
        for name, members in shown(groups.items(), told):
            values.compare(members, found[name])
    return found


class _BatchValues:
    """All values of one batch in floats, and what the outputs become where some tensors are rounded."""

    def __init__(self, module: CompiledModule, leaves: Leaves) -> None:
        self._plain, self._rounding = Runner(module, rounding=False), Runner(module, rounding=True)
        self._nodes = list(module.graph.nodes)
        self._free = last_reads(module.graph)
        placeholders = module.graph.find_nodes(op="placeholder")
        self._floats: Values = dict(zip(placeholders, leaves, strict=False))
        for node in self._nodes:
            if node.op not in ("placeholder", "output"):
                self._floats[node] = self._plain.value(node, self._floats)

    def compare(self, members: Collection[str], ratio: Ratio) -> None:
        """Add the outputs with the quantizers ``members`` rounding."""
        changed: Values = {}
        for node in self._nodes:
            sources = node.all_input_nodes
            if node.op == "output":
                for source in sources:
                    exact = self._floats[source]
                    ratio.add(exact, changed.get(source, exact))
                return
            rounds = node.target is ops.fake_quantize and quantizer_name(node) in members
            if rounds or any(source in changed for source in sources):
                operands = {source: changed.get(source, self._floats[source]) for source in sources}
                changed[node] = (self._rounding if rounds else self._plain).value(node, operands)
            for source in self._free.get(node, ()):
                changed.pop(source, None)


def rounded_layers(module: CompiledModule) -> dict[str, list[Call]]:
    """Layers and operators any of whose tensors are rounded, by name → their calls.

    Left out: what only passes values on or clips them, what makes a weight of parameters, and float operators
    whose result is rounded as the input of others, or that happen to read a rounded tensor.
    """
    found: dict[str, list[Call]] = {}
    reached: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    for name, calls in layer_calls(module).items():
        rounding = [call for call in calls if call.node in reached and _rounds(call)]
        if rounding:
            found[name] = rounding
    return found


def _rounds(call: Call) -> bool:
    if call.op in PASSING | CLIPPING or call.node.target is ops.fake_quantize:
        return False
    tensors = tensors_of(call.node)
    if "weight" in tensors or "_output" in tensors.get("output", ""):  # its name says who asked for it
        return True
    return any(name.startswith("input") for name in tensors) and call.op in COMPUTING | FOLLOWING
