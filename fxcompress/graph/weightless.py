"""A module without its weights: what its multiply-accumulates are counted on when the module is gone.

parameters, buffers  →  shapes and dtypes  →  fake tensors, once they are counted
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate, map_arg

from fxcompress.graph.cost import MacCount, count_macs
from fxcompress.graph.module import CompiledModule, empty_twin, mirror

Shape = tuple[int, ...]


class _Shape(NamedTuple):
    """Stands for a tensor."""

    size: Shape
    dtype: torch.dtype
    is_parameter: bool

    def empty(self, device: torch.device) -> Tensor:
        made = torch.empty(self.size, dtype=self.dtype, device=device)
        return nn.Parameter(made, requires_grad=False) if self.is_parameter else made


def _shapes(table: Mapping[str, Tensor | None]) -> dict[str, Any]:
    return {
        name: t if t is None else _Shape(tuple(t.shape), t.dtype, isinstance(t, nn.Parameter))
        for name, t in table.items()
    }


class _Mark:
    """Stands for a node."""

    __slots__ = ()


class _GraphRecord:
    """What a graph computes: cheaper than a copy, and does not keep the graph's module alive."""

    def __init__(self, graph: fx.Graph) -> None:
        marks = {node: _Mark() for node in graph.nodes}
        find: Any = marks.__getitem__
        self._nodes: list[tuple[Any, ...]] = [
            (mark, n.op, n.target, map_arg(n.args, find), map_arg(n.kwargs, find), n.name)
            for n, mark in marks.items()
        ]
        self._empty = empty_twin(graph)

    def graph(self) -> fx.Graph:
        twin, nodes = empty_twin(self._empty), {}  # type: tuple[fx.Graph, dict[_Mark, fx.Node]]

        def find(value: Any) -> Any:
            return nodes[value] if isinstance(value, _Mark) else value

        for mark, op, target, args, kwargs, name in self._nodes:
            args, kwargs = map_aggregate(args, find), map_aggregate(kwargs, find)
            nodes[mark] = twin.create_node(op, target, args, kwargs, name)
        return twin


class Weightless:
    """A module without its weights; to be counted it is made again with fake tensors."""

    def __init__(self, module: nn.Module) -> None:
        tensors = itertools.chain(module.parameters(), module.buffers())
        self._device = next((t.device for t in tensors), torch.device("cpu"))
        self._graph: _GraphRecord | None = None
        if isinstance(module, CompiledModule):
            self._root, self._graph = mirror(module, copy.copy), _GraphRecord(module.graph)
        else:
            weightless = {id(t): t.to("meta") for t in (*module.parameters(), *module.buffers())}
            self._root = copy.deepcopy(module, weightless)
        for owner in self._root.modules():
            vars(owner).update(_parameters=_shapes(owner._parameters), _buffers=_shapes(owner._buffers))

    def macs(self, inputs: Any) -> MacCount:
        """Count them; only once, as the shapes become fake tensors."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            for owner in self._root.modules():
                tables: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers
                for table in tables:
                    table.update({name: s.empty(self._device) for name, s in table.items() if s is not None})
        module = self._root if self._graph is None else CompiledModule(self._root, self._graph.graph())
        return count_macs(module, inputs)
