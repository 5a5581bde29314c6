"""In-place operators become functional ones, and later reads of the written tensor read the result.

    y = relu_(x); z = x + y                    →     y = relu(x); z = y + y
    v = x[:, :2]; v.mul_(2); z = x + 1         →     y = slice_scatter(x, x[:, :2] * 2, …); z = y + 1

A write through a view is scattered into the tensor viewed where that is read afterwards, and other views of
it are taken anew. What cannot be told (a ``reshape`` may be a view or a copy) raises ``NotFunctional``.

    y = dropout(x); y.mul_(2); z = x + 1       →     z = unless_training(y * 2, x) + 1

Dropout returns its input in eval mode, and a copy in train mode.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx

from fxcompress import ops

aten = torch.ops.aten

_MAY_RETURN_ITS_INPUT = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"}


def restore_batch_norm(graph: fx.Graph) -> None:
    """Undo what ``run_decompositions`` does to BatchNorm in eval mode:
    it cannot follow train mode otherwise.
    """
    decomposed = aten._native_batch_norm_legit_no_training.default
    for node in list(graph.find_nodes(op="call_function", target=decomposed)):
        x, weight, bias, mean, var, momentum, eps = node.args
        if any(user.args[1] != 0 for user in node.users):
            continue
        with graph.inserting_before(node):
            args = (x, weight, bias, mean, var, False, momentum, eps, False)
            norm = graph.call_function(aten.batch_norm.default, args)
        for first in list(node.users):
            norm.meta = dict(first.meta, nn_module_stack=node.meta.get("nn_module_stack"))
            first.replace_all_uses_with(norm)
            graph.erase_node(first)
        graph.erase_node(node)


class NotFunctional(Exception):
    """The graph writes through an alias in a way that cannot be told."""


def functionalize(graph: fx.Graph) -> fx.Graph:
    """Rewrite ``graph`` in place."""
    editor = _Functionalizer(graph)
    for node in list(graph.nodes):
        editor.visit(node)
    return graph


class _Functionalizer:
    """Walks a graph in order and knows the current value of every tensor that shares memory with others."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._source: dict[fx.Node, fx.Node] = {}
        """Of a view (or of the list of views a split makes) the tensor it is a view of."""
        self._same: dict[fx.Node, fx.Node] = {}
        """Of an in-place operator's result the tensor it wrote to."""
        self._version: dict[fx.Node, int] = {}
        """How often the memory of a tensor that is no view was written to."""
        self._values: dict[fx.Node, tuple[int, fx.Node]] = {}
        """The latest node that holds a tensor's value, and the version of the memory it belongs to."""
        self._pending: dict[fx.Node, list[tuple[int, fx.Node, fx.Node]]] = {}
        """Writes through views (version, view, what it holds) that the memory's value does not have yet."""

    def visit(self, node: fx.Node) -> None:
        """Let ``node`` read current values; make it functional if it writes."""
        given = list(node.all_input_nodes)
        current = {source: self._current(source, node) for source in given}
        if any(old is not new for old, new in current.items()):
            node.args = fx.node.map_arg(node.args, current.__getitem__)
            node.kwargs = fx.node.map_arg(node.kwargs, current.__getitem__)
        if node.target is operator.getitem and given[0] in self._source:
            self._alias(node, given[0])
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return
        by_value = {new: old for old, new in current.items()}
        written = _written(node)
        if written is not None:
            if not isinstance(written, fx.Node) or self._base(by_value[written]).op == "get_attr":
                raise NotFunctional(f"{node} writes to {written}")
            node.target = _functional(node.target)
            self._write(by_value[written], node)
        else:
            for source in _aliased(node):
                self._alias(node, by_value[source])

    def _alias(self, node: fx.Node, source: fx.Node) -> None:
        self._source[node] = self._same.get(source, source)
        self._values[node] = self._version.get(self._base(node), 0), node

    def _base(self, node: fx.Node) -> fx.Node:
        node = self._same.get(node, node)
        while node in self._source:
            node = self._source[node]
        return node

    def _write(self, written: fx.Node, result: fx.Node) -> None:
        """``result`` is what ``written`` holds from now on, and with it the memory it is a view of."""
        written = self._same.get(written, written)
        base = self._base(written)
        self._version[base] = self._version.get(base, 0) + 1
        self._values[written] = self._version[base], result
        self._same[result] = written
        if written is base:
            self._pending.pop(base, None)
        else:
            self._pending.setdefault(base, []).append((self._version[base], written, result))

    def _current(self, node: fx.Node, before: fx.Node) -> fx.Node:
        """The node that holds the value of ``node`` by now; a view of written memory is taken anew."""
        node = self._same.get(node, node)
        base = self._base(node)
        version = self._version.get(base, 0)
        made, value = self._values.get(node, (0, node))
        if made == version:
            return value
        if node is base:
            value = self._values.get(base, (0, base))[1]
            for _, written, result in self._pending.pop(base, ()):
                value = self._write_into(value, self._path(written), result, before)
        else:
            since = [write for write in self._pending.get(base, ()) if write[0] > made]
            paths = [self._path(written) for _, written, _ in since]
            through = all(node in path[:-1] for path in paths) and not isinstance(
                node.meta.get("val"), list | tuple
            )
            if through and len(since) == version - made:
                # All of it was written through views of this one: whether it may be a copy does not matter.
                for path, (_, _, result) in zip(paths, since, strict=True):
                    value = self._write_into(value, path[path.index(node) + 1 :], result, before)
            else:
                value = self._view(node, self._current(self._source[node], before), before)
        self._values[node] = version, value
        return value

    def _path(self, node: fx.Node) -> list[fx.Node]:
        """The views from the base to ``node``."""
        path = [node] if node in self._source else []
        while path and self._source[path[0]] in self._source:
            path.insert(0, self._source[path[0]])
        return path

    def _view(self, view: fx.Node, source: fx.Node, before: fx.Node) -> fx.Node:
        """The view ``view`` of ``source``."""
        if _is_eval_dropout(view):
            return self._unless_training(view, source, self._values[view][1], before)
        if view.target in _MAY_COPY:
            raise NotFunctional(f"{view} may be a view or a copy of what is written to later")
        with self.graph.inserting_before(before):
            value = self.graph.node_copy(view)
        value.args = (source, *view.args[1:])
        return value

    def _unless_training(self, dropout: fx.Node, now: fx.Node, copied: fx.Node, before: fx.Node) -> fx.Node:
        """``now`` in eval mode, where ``dropout`` shares memory, and what it ``copied`` in train mode."""
        with self.graph.inserting_before(before):
            value = self.graph.call_function(ops.unless_training, (now, copied, None))
        value.meta = dict(dropout.meta)
        return value

    def _write_into(self, whole: fx.Node, path: list[fx.Node], part: fx.Node, before: fx.Node) -> fx.Node:
        """``whole`` with ``part`` in place of what the last view of ``path`` is a view of."""
        view, *rest = path
        if _is_eval_dropout(view):
            if rest:
                own = self._unless_training(view, whole, self._values[view][1], before)
                part = self._write_into(own, rest, part, before)
                self._values[view] = -1, part  # in train mode; in eval mode it follows `whole`
            return self._unless_training(view, part, whole, before)
        if view.target in _MAY_COPY:
            raise NotFunctional(f"a write through {view}, which may be a copy")
        inner = [self._view(view, whole, before)] if rest else []
        if rest and rest[0].target is operator.getitem:  # a split and its piece are one view
            view, *rest = rest
            inner = [self._view(view, inner[0], before)] if rest else []
        if rest:
            part = self._write_into(inner[0], rest, part, before)
        with self.graph.inserting_before(before):
            value = _scattered(self.graph, view, whole, part)
        if "val" not in value.meta:
            value.meta = {**part.meta, "val": whole.meta.get("val")}
        return value


def _is_eval_dropout(node: fx.Node) -> bool:
    return node.target in _DROPOUTS and node.args[2:] == (False,)


def _written(node: fx.Node) -> Any:
    """The argument the operator writes to, or ``None``."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.alias_info is not None and argument.alias_info.is_write:
            return node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
    return None


_MAY_COPY = (
    aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default, aten.dropout.default,
    aten.feature_dropout.default, aten.alpha_dropout.default, aten.to.dtype, aten.to.dtype_layout,
    aten.to.device,
)  # fmt: skip
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_RESHAPES = (aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.alias.default)
_TRANSPOSES = (aten.transpose.int, aten.t.default, aten.numpy_T.default, aten.mT.default)


def _scattered(graph: fx.Graph, view: fx.Node, whole: fx.Node, part: fx.Node) -> fx.Node:
    """``whole`` with ``part`` in place of what ``view`` is a view of."""
    rest = view.args[1:]
    if view.target is aten.slice.Tensor:
        return graph.call_function(aten.slice_scatter.default, (whole, part, *rest))
    if view.target is aten.select.int:
        return graph.call_function(aten.select_scatter.default, (whole, part, *rest))
    if view.target in _RESHAPES:
        return graph.call_function(aten.reshape_as.default, (part, whole))
    if view.target in _TRANSPOSES:
        return graph.call_function(view.target, (part, *rest))
    if view.target is aten.permute.default:
        dims = [d % len(rest[0]) for d in rest[0]]  # type: ignore[arg-type, union-attr, operator]
        return graph.call_function(aten.permute.default, (part, np.argsort(dims).tolist()))
    if view.target is operator.getitem and isinstance(view.args[0], fx.Node):
        return _scattered_item(graph, view.args[0], int(view.args[1]), whole, part)  # type: ignore[arg-type]
    raise NotFunctional(f"a write through {view}")


def _scattered_item(graph: fx.Graph, split: fx.Node, index: int, whole: fx.Node, part: fx.Node) -> fx.Node:
    dim = split.args[2] if len(split.args) > 2 else split.kwargs.get("dim", 0)
    if split.target is aten.unbind.int:
        dim = split.args[1] if len(split.args) > 1 else 0
        return graph.call_function(aten.select_scatter.default, (whole, part, dim, index))
    if split.target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        raise NotFunctional(f"a write through {split}")
    sizes = [piece.shape[dim] for piece in split.meta["val"]]
    if not all(isinstance(size, int) for size in sizes):
        raise NotFunctional(f"a write through {split}, whose pieces follow the batch")
    start = sum(sizes[:index])
    return graph.call_function(aten.slice_scatter.default, (whole, part, dim, start, start + sizes[index]))


def _aliased(node: fx.Node) -> set[fx.Node]:
    """The operands whose memory the result of ``node`` may share."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None]
    if schema.name in _MAY_RETURN_ITS_INPUT:
        names = [0]
    return {a for a in (node.args[i] for i in names if i < len(node.args)) if isinstance(a, fx.Node)}


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    name = target._schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    if overload is None:
        raise NotFunctional(f"{target} has no functional form")
    return overload  # type: ignore[no-any-return]
