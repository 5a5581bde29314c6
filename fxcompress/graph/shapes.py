"""Node metadata: ``meta["tensor"]`` (shape, dtype,
which dimensions follow the batch) and ``meta["value"]``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxcompress.graph.calls import PROBE, TensorInfo


def annotate(graph: fx.Graph) -> None:
    """Replace export's fake values (``meta["val"]``) by plain facts."""
    known: dict[Any, int] = {}
    for node in graph.nodes:
        value = node.meta.pop("val", None)
        node.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
        if value is not None:
            node.meta["tensor"] = _describe(value, known)


def _describe(value: Any, known: dict[Any, int]) -> Any:
    if isinstance(value, torch.Tensor):
        shape = tuple(_size(s, known) for s in value.shape)
        return TensorInfo(shape, value.dtype, tuple(is_open(s) for s in value.shape))
    if isinstance(value, (tuple, list)):
        return tuple(_describe(v, known) for v in value)
    if isinstance(value, torch.SymInt):
        return _size(value, known)
    return value if isinstance(value, (int, float, bool)) else None


def is_open(size: Any) -> bool:
    """Whether a size follows the batch: the trace may have fixed what was to stay open."""
    return not isinstance(size, int) and bool(size.node.expr.free_symbols)


def _size(size: Any, known: dict[Any, int]) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression not in known:
        known[expression] = int(expression.subs(dict.fromkeys(expression.free_symbols, PROBE)))
    return known[expression]


def info(node: fx.Node) -> TensorInfo | None:
    """The tensor facts of a node; ``None`` if it yields no single tensor."""
    value = node.meta.get("tensor")
    return value if isinstance(value, TensorInfo) else None


def element_info(node: fx.Node) -> TensorInfo | None:
    """Like ``info``, looking through ``getitem`` on an operator with several outputs."""
    if node.op == "call_function" and node.target is operator.getitem:
        source, index = node.args
        several = source.meta.get("tensor") if isinstance(source, fx.Node) else None
        if isinstance(several, tuple) and isinstance(index, int):
            item = several[index]
            return item if isinstance(item, TensorInfo) else None
    return info(node)
