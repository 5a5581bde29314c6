"""Constants: values that are computed from parameters and buffers alone, such as a weight under a mask."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.graph.calls import Reference, call_of
from fxcompress.graph.module import CompiledModule, get_tensor


class Constants:
    """Filled node by node, in the order of the graph; what is rounded is no constant."""

    def __init__(self, module: CompiledModule) -> None:
        self._module = module
        self._values: dict[Any, Tensor] = {}

    def see(self, node: fx.Node) -> None:
        """Compute ``node`` if everything that it reads is known."""
        if node.op == "get_attr":
            owner, _, attribute = str(node.target).rpartition(".")
            value = getattr(self._module.get_submodule(owner), attribute)
            if isinstance(value, Tensor):
                self._values[node] = value.detach()
        elif callable(node.target) and node.target is not ops.fake_quantize:
            sources = node.all_input_nodes
            if sources and all(source in self._values for source in sources):
                find: Any = self._values.__getitem__
                args, kwargs = fx.node.map_arg(node.args, find), fx.node.map_arg(node.kwargs, find)
                with torch.no_grad():
                    value = node.target(*args, **kwargs)
                if isinstance(value, Tensor):
                    self._values[node] = value

    def of(self, value: Any) -> Tensor | None:
        """The value of a parameter, or of a node that was seen; ``None`` if it depends on the input."""
        if isinstance(value, Reference):
            return get_tensor(self._module, value).detach()
        return self._values.get(value)


def constant(module: CompiledModule, value: Any) -> Tensor | None:
    """The value of an operand (a ``Ref``) that no input reaches, detached; ``None`` for any other.

    What a quantizer rounds is none: its value follows the quantizer.
    """
    constants = Constants(module)
    pending = [value] if isinstance(value, fx.Node) else []
    seen: set[fx.Node] = set()
    while pending:
        node = pending[-1]
        if node.op == "placeholder" or node.target is ops.fake_quantize:
            return None
        missing = [source for source in node.all_input_nodes if source not in seen]
        if missing:
            pending += missing
        else:
            pending.pop()
            seen.add(node)
            constants.see(node)
    return constants.of(value)


def is_masked(value: Any) -> bool:
    """Whether a mask of a parameter is among what an operand is computed from."""
    if not isinstance(value, fx.Node):
        return False
    return "masked_parameter" in value.meta or (
        value.op == "call_function" and any(map(is_masked, value.all_input_nodes))
    )


class Reading:
    """Which operators read a parameter or buffer, and which layers are called more than once."""

    def __init__(self, module: CompiledModule) -> None:
        self._module = module
        self._readers: dict[int, set[fx.Node]] = {}
        self._calls: Counter[str | None] = Counter()
        for call in filter(None, map(call_of, module.graph.nodes)):
            self._calls[call.module] += 1
            for _, ref in call.refs():
                if isinstance(ref, Reference):
                    self._readers.setdefault(id(get_tensor(module, ref)), set()).add(call.node)

    def is_shared(self, value: Any, reader: fx.Node) -> bool:
        """Whether others than ``reader`` read the parameter ``value``, or call the layer that it calls.

        What is computed for the reader alone is not shared, even where the parameters behind it are.
        """
        call = call_of(reader)
        if call is not None and call.module is not None and self._calls[call.module] > 1:
            return True
        if not isinstance(value, Reference):
            return False
        return bool(self._readers.get(id(get_tensor(self._module, value)), set()) - {reader})
