"""Layer by layer: what every layer yields in floats, and what it is given once those before it are rounded.

The graph is run node by node on all batches at once, twice: in floats, and rounded. At each layer the caller
may change how it rounds or what it adds; the layer is run again, and what follows sees the change. Costs two
passes over the data; holds the tensors that later nodes read, of all batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Argument, Target

from fxcompress import ops
from fxcompress.errors import FxcompressError
from fxcompress.graph import inputs
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.training.batches import inputs_of

Values = dict[fx.Node, Any]


class Runner(fx.Interpreter):
    """Runs single nodes; fake-quantize nodes pass floats on unless it is ``rounding``. Values stay as they
    are: modules that work in place get copies.
    """

    def __init__(self, module: CompiledModule, *, rounding: bool) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._rounding = rounding

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """As the node says."""
        if target in (ops.fake_quantize, ops.round_bias) and not self._rounding:
            return args[0]
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """As the node says."""
        if getattr(self.fetch_attr(str(target)), "inplace", False):
            args = tuple(x.clone() if isinstance(x, Tensor) else x for x in args)
        return super().call_module(target, args, kwargs)

    def value(self, node: fx.Node, known: Values) -> Any:
        """The value of ``node``, given those of its operands."""
        self.env = known
        return self.run_node(node)


@dataclass(frozen=True)
class Layer:
    """A layer at the moment when everything in front of it is settled.

    ``floats``: what it yields in the float model, batch by batch; ``rounded``: what it yields now, its inputs
    and its own tensors rounded.
    """

    node: fx.Node
    floats: list[Tensor]
    rounded: list[Tensor]
    _runner: Runner
    _known: list[Values]

    def yields(self, batch: int, operands: Mapping[fx.Node, Tensor]) -> Tensor:
        """What it yields on the rounded inputs of a batch, with some operands replaced."""
        found: Tensor = self._runner.value(self.node, {**self._known[batch], **operands})
        return found

    def behind(self, node: fx.Node, value: Tensor) -> Tensor:
        """What ``node``, which reads the layer alone, makes of ``value``."""
        found: Tensor = value if node is self.node else self._runner.value(node, {self.node: value})
        return found


def walk(module: CompiledModule, batches: Iterable[Any], layers: Collection[fx.Node]) -> Iterator[Layer]:
    """Go through ``layers`` in order of execution. The graph must not change meanwhile.

    Args:
        module: in eval mode.
        batches: see ``fxcompress.compile``.

    Raises:
        FxcompressError: if there are none.
    """
    floats, rounded = Runner(module, rounding=False), Runner(module, rounding=True)
    leaves = leaves_of(module, batches)
    placeholders = module.graph.find_nodes(op="placeholder")
    streams = [(r, [dict(zip(placeholders, x, strict=False)) for x in leaves]) for r in (floats, rounded)]
    free = last_reads(module.graph)
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        for runner, known in streams:
            _run(runner, node, known)
        if node in layers:
            (_, plain), (_, known) = streams
            yield Layer(node, [v[node] for v in plain], [v[node] for v in known], rounded, known)
            for operand in _own(node):
                _run(rounded, operand, known)
            _run(rounded, node, known)
        for _, known in streams:
            for values in known:
                for source in free.get(node, ()):
                    values.pop(source, None)


def _run(runner: Runner, node: fx.Node, known: list[Values]) -> None:
    with torch.no_grad():
        for values in known:
            values[node] = runner.value(node, values)


def last_reads(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Node → the values that nothing needs behind it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        again = (source for operand in _own(node) for source in operand.all_input_nodes)
        last |= dict.fromkeys((*node.all_input_nodes, *again), node)
    free: dict[fx.Node, list[fx.Node]] = {}
    for source, reader in last.items():
        free.setdefault(reader, []).append(source)
    return free


def _own(node: fx.Node) -> list[fx.Node]:
    """The fake-quantize nodes of a layer's own tensors."""
    call = call_of(node)
    refs = [] if call is None else [ref for name, ref in call.refs() if name not in ("input", "mat1")]
    return [ref for ref in refs if isinstance(ref, fx.Node) and ref.target is ops.fake_quantize]


def leaves_of(module: CompiledModule, batches: Iterable[Any]) -> list[list[Any]]:
    """The values of the placeholders, in their order, for each of ``batches`` (see ``fxcompress.compile``).

    Raises:
        FxcompressError: if there are none.
    """
    leaves = [inputs.leaves_of(module.graph, inputs_of(module, batch)) for batch in batches]
    if not leaves:
        raise FxcompressError("data: expected at least one batch to measure errors on, got none")
    return leaves
