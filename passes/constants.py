"""``Constants``: what the nodes of a graph yield that are computed from parameters and buffers alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.graph.calls import Reference
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
