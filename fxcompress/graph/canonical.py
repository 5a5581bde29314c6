"""One form for operators that can be said in several ways.

x @ w.T          →     linear(x, w)        with ``w`` a parameter: the same kernel
x.view(sizes)    →     x.reshape(sizes)    the same view, also of tensors whose strides change later
slice_scatter, select_scatter    →     cat([x[:start], source, x[end:]])    channels flow through it, and
                                           gradients of complex numbers do
copy(x, source)  →     source              (cast, expanded); what a write into all of ``x`` leaves
randint_like(x)  →     randint_like(x.detach())    what torch's Python function does: it has no derivative
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
from torch import fx

from fxcompress.graph.calls import TensorInfo, bind
from fxcompress.graph.shapes import element_info

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_PRODUCTS = (aten.matmul.default, aten.mm.default)
_SWAPS = (aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
_TRANSPOSES = (aten.t.default, aten.numpy_T.default, aten.mT.default, aten.permute.default, *_SWAPS)
_RANDOM_INTEGERS = tuple(getattr(aten.randint_like, overload) for overload in aten.randint_like.overloads())


def canonicalize(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place."""
    for node in list(graph.nodes):
        if node.target in _VIEWS:
            x, size = bind(node.target, node.args, dict(node.kwargs)).values()
            node.target, node.args, node.kwargs = aten.reshape.default, (x, size), {}
        elif node.target in _PRODUCTS:
            _linear(graph, node)
        elif node.target in _RANDOM_INTEGERS and isinstance(node.args[0], fx.Node):
            with graph.inserting_before(node):
                like = graph.call_function(aten.detach.default, (node.args[0],))
            like.meta["tensor"] = element_info(node.args[0])
            node.args = (like, *node.args[1:])
        elif node.target is aten.copy.default:
            _copied(graph, node)
        elif node.target in (aten.slice_scatter.default, aten.select_scatter.default):
            _concatenated(graph, node)


def _copied(graph: fx.Graph, node: fx.Node) -> None:
    target, source = node.args[:2]
    if not isinstance(target, fx.Node) or not isinstance(source, fx.Node):
        return
    into, given = element_info(target), element_info(source)
    if into is None or given is None:
        return
    with graph.inserting_before(node):
        if given.dtype != into.dtype:
            source = graph.call_function(aten.to.dtype, (source, into.dtype))
            source.meta["tensor"] = replace(given, dtype=into.dtype)
        if given.shape != into.shape:
            source = graph.call_function(aten.expand_as.default, (source, target))
            source.meta["tensor"] = into
    node.replace_all_uses_with(source)
    graph.erase_node(node)


def _concatenated(graph: fx.Graph, node: fx.Node) -> None:
    args = bind(node.target, node.args, dict(node.kwargs))
    x, source, dim = args["self"], args["src"], args["dim"]
    facts = element_info(x)
    single = "index" in args
    first, last = (args["index"], None) if single else (args["start"], args["end"])
    if (
        facts is None
        or args.get("step", 1) != 1
        or not all(isinstance(at, int | None) for at in (first, last))
    ):
        return
    if not single and not first and (last is None or last == sys.maxsize):
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        return
    if facts.dynamic[dim] or not node.users:
        return
    size = facts.shape[dim]
    start, stop, _ = slice(first, last).indices(size)
    end = start + 1 if single else max(start, stop)

    def of_width(width: int) -> TensorInfo:
        shape = [width if d == dim % len(facts.shape) else s for d, s in enumerate(facts.shape)]
        return replace(facts, shape=tuple(shape))

    def part(low: int, high: int) -> fx.Node:
        piece = graph.call_function(aten.slice.Tensor, (x, dim, low, high))
        piece.meta["tensor"] = of_width(high - low)
        return piece

    with graph.inserting_before(node):
        if single:
            source = graph.call_function(aten.unsqueeze.default, (source, dim))
            source.meta["tensor"] = of_width(1)
        pieces = [part(0, start)] * (start > 0) + [source] + [part(end, size)] * (end < size)
        joined = graph.call_function(aten.cat.default, (pieces, dim))
        joined.meta = dict(node.meta)
    node.replace_all_uses_with(joined)
    graph.erase_node(node)


def _linear(graph: fx.Graph, node: fx.Node) -> None:
    x, transposed = bind(node.target, node.args, dict(node.kwargs)).values()
    weight = _source_of_transpose(transposed)
    if weight is not None:
        node.target, node.args, node.kwargs = aten.linear.default, (x, weight, None), {}
        if not transposed.users:
            graph.erase_node(transposed)


def _source_of_transpose(node: fx.Node) -> fx.Node | None:
    """The parameter or buffer ``[out, in]`` whose transpose ``node`` is."""
    if node.target not in _TRANSPOSES or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    facts = element_info(source) if source.op == "get_attr" else None
    if facts is None or len(facts.shape) != 2:
        return None
    given = node.args[1] if node.target is aten.permute.default else node.args[1:]
    order = [d % 2 for d in given if isinstance(d, int)]  # type: ignore[union-attr]
    swapped = {aten.permute.default: order == [1, 0], **dict.fromkeys(_SWAPS, len(set(order)) == 2)}
    return source if swapped.get(node.target, True) else None
