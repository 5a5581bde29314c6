"""Constants: values that are computed from parameters and buffers alone, such as a weight under a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.graph.calls import Reference, call_of
from fxcompress.graph.module import CompiledModule, get_tensor


def constant(module: CompiledModule, value: Any) -> Tensor | None:
    """The value of an operand (a ``Ref``) that no input reaches, detached; ``None`` for any other.

    What a quantizer rounds is none: its value follows the quantizer.
    """
    if isinstance(value, Reference):
        return get_tensor(module, value).detach()
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        return get_tensor(module, str(value.target)).detach()
    if value.op != "call_function" or value.target is ops.fake_quantize or not value.all_input_nodes:
        return None
    known = {source: constant(module, source) for source in value.all_input_nodes}
    if any(found is None for found in known.values()):
        return None
    find: Any = known.__getitem__
    with torch.no_grad():
        made = value.target(*fx.node.map_arg(value.args, find), **fx.node.map_arg(value.kwargs, find))  # type: ignore[operator]
    return made if isinstance(made, Tensor) else None


def is_masked(value: Any) -> bool:
    """Whether a mask of a parameter is among what an operand is computed from."""
    if not isinstance(value, fx.Node):
        return False
    return "masked_parameter" in value.meta or (
        value.op == "call_function" and any(map(is_masked, value.all_input_nodes))
    )


class Reading:
    """Which operators read a parameter or buffer, be it through what is computed from it alone."""

    def __init__(self, module: CompiledModule) -> None:
        self._module = module
        self._made_of: dict[fx.Node, frozenset[int]] = {}
        self._readers: dict[int, set[fx.Node]] = {}
        for node in module.graph.nodes:
            self._visit(node)

    def is_shared(self, value: Any, reader: fx.Node) -> bool:
        """Whether others than ``reader`` read the parameters that ``value`` is computed from."""
        return any(self._readers.get(tensor, set()) - {reader} for tensor in self._tensors(value))

    def _visit(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if node.op == "get_attr":
            found = list(self._named(str(node.target)))
            if found:
                self._made_of[node] = frozenset(map(id, found))
        elif node.op == "call_function" and sources and all(s in self._made_of for s in sources):
            self._made_of[node] = frozenset().union(*(self._made_of[s] for s in sources))
        else:
            call = call_of(node)
            for _, ref in () if call is None else call.refs():
                for tensor in self._tensors(ref):
                    self._readers.setdefault(tensor, set()).add(node)

    def _named(self, name: str) -> Iterator[Tensor]:
        owner, _, attribute = name.rpartition(".")
        value = getattr(self._module.get_submodule(owner), attribute)
        if isinstance(value, Tensor):
            yield value

    def _tensors(self, value: Any) -> frozenset[int]:
        if isinstance(value, Reference):
            return frozenset({id(get_tensor(self._module, value))})
        return self._made_of.get(value, frozenset())
