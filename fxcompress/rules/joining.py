"""Joining and splitting along a dimension: ``cat``, ``stack``, ``split``, ``chunk``, ``unbind``."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Ref
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow, dim_of
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _dim(call: Call, rank: int) -> int:
    dim = call.args["dim"] if "dim" in call.args else call.get("axis", 0)
    return dim_of(dim, rank)


@rule("cat", "concat", "concatenate")
class Cat(Rule):
    """Slices of the result are those of the operands, one after the other; other dimensions are shared."""

    def flow(self, call: Call, flow: Flow) -> None:
        parts = [flow.axes(ref) for ref in call.args["tensors"]]
        rank = len(flow.info(call.node).shape)
        parts = [p for p in parts if len(p) == rank]
        dim = _dim(call, rank)
        made = list(parts[0])
        for axes in parts[1:]:
            for i in range(rank):
                if i != dim:
                    made[i].merge(axes[i])
        made[dim] = flow.fresh(flow.info(call.node))[dim]
        start = 0
        for axes in parts:
            size = axes[dim].size
            if axes[dim].dynamic:
                flow.freeze([a[dim] for a in parts] + [made[dim]], call, "concatenation of positions")
                break
            flow.link(made[dim], range(start, start + size), axes[dim], range(size))
            start += size
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[call.node]
        joined = _dim(call, len(axes))
        refs: list[Ref] = [
            r for r in call.args["tensors"] if len(values.map.of[values.canonical(r)]) == len(axes)
        ]
        for dim in range(len(axes)):
            found = [values.slices(r, dim) for r in refs]
            if all(f is None for f in found):
                continue
            sizes = [values.map.of[values.canonical(r)][dim].size for r in refs]
            filled = [_or_nan(f, s) for f, s in zip(found, sizes, strict=True)]
            if dim == joined:
                values.set(call.node, dim, torch.cat(filled))
            else:
                same = torch.stack([f == filled[0] for f in filled]).all(0)
                values.set(call.node, dim, torch.where(same, filled[0], torch.nan))


def _or_nan(found: Tensor | None, size: int) -> Tensor:
    return torch.full((size,), torch.nan, dtype=torch.float64) if found is None else found


@rule("stack")
class Stack(Rule):
    """A new dimension over the operands; the others are shared."""

    def flow(self, call: Call, flow: Flow) -> None:
        parts = [flow.axes(ref) for ref in call.args["tensors"]]
        for axes in parts[1:]:
            for a, b in zip(parts[0], axes, strict=True):
                a.merge(b)
        made = list(parts[0])
        new = Axis(len(parts))
        flow.freeze(new, call, "stacked tensors")
        made.insert(_dim(call, len(made) + 1), new)
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        new = _dim(call, len(values.map.of[call.node]))
        for dim in range(len(values.map.of[call.node])):
            if dim == new:
                continue
            source = dim if dim < new else dim - 1
            size = values.map.of[call.node][dim].size
            found = [_or_nan(values.slices(r, source), size) for r in call.args["tensors"]]
            same = torch.stack([f == found[0] for f in found]).all(0)
            values.set(call.node, dim, torch.where(same, found[0], torch.nan))


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split", "split_copy")
class Split(Rule):
    """Consecutive parts of a dimension, of the sizes the graph recorded."""

    def _sizes(self, call: Call, dim: int) -> list[int]:
        return [part.shape[dim] for part in call.node.meta["tensor"]]

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        dim = _dim(call, len(x))
        if x[dim].dynamic:
            flow.freeze_call(call, "split of a dimension that follows the batch")
            return
        parts, start = [], 0
        for size in self._sizes(call, dim):
            part = Axis(size)
            flow.link(part, range(size), x[dim], range(start, start + size))
            parts.append((*x[:dim], part, *x[dim + 1 :]))
            start += size
        flow.set_several(call.node, parts)

    def constants(self, call: Call, values: Values) -> None:
        source = call.args["self"]
        rank = len(values.map.of[values.canonical(source)])
        split = _dim(call, rank)
        for dim in range(rank):
            given = values.slices(source, dim)
            if given is None:
                continue
            sizes = self._sizes(call, split)
            parts = given.split(sizes) if dim == split else [given] * len(sizes)
            for index, part in enumerate(parts):
                values.set(call.node, dim, part, index)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        source = call.args["self"]
        x = shrink.axes(source)
        dim = _dim(call, len(x))
        if shrink.keeps_all(x[dim]):
            return
        parts = shrink.map.several[call.node]
        sizes = [shrink.count(part[dim]) for part in parts if part is not None]
        shrink.rewrite(call, torch.ops.aten.split_with_sizes.default, source, sizes, dim)


@rule("unbind")
class Unbind(Rule):
    """One result per slice of a dimension, which therefore stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        dim = _dim(call, len(x))
        flow.freeze(x[dim], call, "each slice is a tensor of its own")
        rest = (*x[:dim], *x[dim + 1 :])
        flow.set_several(call.node, [rest] * len(call.node.meta["tensor"]))

    def constants(self, call: Call, values: Values) -> None:
        source = call.args["self"]
        rank = len(values.map.of[values.canonical(source)])
        gone = _dim(call, rank)
        for dim in range(rank):
            given = values.slices(source, dim) if dim != gone else None
            for index in range(len(call.node.meta["tensor"])):
                values.set(call.node, dim if dim < gone else dim - 1, given, index)


@rule("getitem")
class GetItem(Rule):
    """One result of an operator with several."""

    def flow(self, call: Call, flow: Flow) -> None:
        source, index = call.node.args
        axes = flow.map.several.get(source, ())[index] if isinstance(index, int) else None  # type: ignore[arg-type]
        if axes is not None:
            flow.map.of[call.node] = axes

    def constants(self, call: Call, values: Values) -> None:
        source, index = call.node.args
        values.take_item(call.node, source, index)  # type: ignore[arg-type]
