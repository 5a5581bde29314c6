"""Constants: values that are computed from parameters and buffers alone, such as a weight under a mask."""

from __future__ import annotations

from collections import Counter
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
