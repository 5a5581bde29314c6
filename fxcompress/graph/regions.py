"""Inline the regions that export sets apart: code under ``torch.no_grad`` or a disabled ``torch.autocast``.

    wrap_with_set_grad_enabled(False, submod, x)     →     the nodes of ``submod`` on ``x``, results detached

Disabling autocast where none is on changes nothing.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.errors import CaptureError

_AUTOCAST = "wrap_with_autocast"
_GRAD = "wrap_with_set_grad_enabled"


def inline_regions(module: fx.GraphModule) -> None:
    """Replace every region of ``module`` by the nodes in it.

    Raises:
        CaptureError: if the model switches autocast on, which would make the graph compute in two dtypes.
    """
    for node in list(module.graph.nodes):
        name = getattr(node.target, "__name__", "")
        if name == _AUTOCAST:
            if node.args[2]:
                raise CaptureError(
                    f"the model switches torch.autocast on inside its forward ({node.args[1]}), but a tensor "
                    "of a compiled graph has one dtype. Use autocast around the calls of the model instead."
                )
            _inline(module, node, node.args[4], node.args[5:], detach=False)
        elif name == _GRAD:
            _inline(module, node, node.args[1], node.args[2:], detach=not node.args[0])


def _inline(
    module: fx.GraphModule, node: fx.Node, region: Any, operands: tuple[Any, ...], *, detach: bool
) -> None:
    inner = getattr(module, str(region.target))
    inline_regions(inner)
    placeholders = inner.graph.find_nodes(op="placeholder")
    values: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    results: Any = ()
    with module.graph.inserting_before(node):
        for part in inner.graph.nodes:
            if part.op == "output":
                results = fx.node.map_arg(part.args[0], values.__getitem__)
                if detach:
                    results = fx.node.map_arg(results, lambda value: _detached(module.graph, value))
            elif part.op != "placeholder":
                values[part] = module.graph.node_copy(part, values.__getitem__)
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results)
    module.graph.erase_node(node)
    if not region.users:
        module.graph.erase_node(region)


def _detached(graph: fx.Graph, value: fx.Node) -> fx.Node:
    if not isinstance(value.meta.get("val"), Tensor):
        return value
    detached = graph.call_function(torch.ops.aten.detach.default, (value,))
    detached.meta["val"] = value.meta["val"]
    return detached
