"""Operators that rearrange dimensions: ``view``, ``flatten``, ``permute``, ``expand``, ``unsqueeze`` and kin.

A view regroups a row-major enumeration. Both shapes are refined into common factors ("atoms"), as in
``b (h d) → b h d``; each dimension on either side is the product of its atoms. Literal sizes that hold a
removed slice are rewritten.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import PROBE, Call
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow, dim_of
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def common_factors(
    a: Sequence[int], b: Sequence[int]
) -> tuple[list[list[int]], list[list[int]], list[int]] | None:
    """Refine two shapes of equal size into atoms.

    Returns, per dimension of ``a`` and of ``b``, the indices of its atoms (none for size 1), and the atom
    sizes; ``None`` if the shapes have no common refinement.
    """
    cuts = sorted({int(c) for shape in (a, b) for c in np.cumprod([1, *shape[::-1]], dtype=np.int64)})
    if any(high % low for low, high in itertools.pairwise(cuts)):
        return None
    atoms = [high // low for low, high in itertools.pairwise(cuts)][::-1]

    def split(shape: Sequence[int]) -> list[list[int]]:
        parts: list[list[int]] = []
        position = 0
        for size in shape:
            part: list[int] = []
            product = 1
            while product < size:
                part.append(position)
                product *= atoms[position]
                position += 1
            parts.append(part)
        return parts

    return split(a), split(b), atoms


def _segments(a: Sequence[int], b: Sequence[int]) -> list[tuple[range, range]]:
    """Cut two shapes into the shortest runs of dimensions with equal products."""
    runs = []
    i = j = i0 = j0 = 0
    while i < len(a) or j < len(b):
        if i == i0 and j == j0:
            left, right = 1, 1
        if i < len(a) and (left <= right or j >= len(b)):
            left *= a[i]
            i += 1
        else:
            right *= b[j]
            j += 1
        if left == right and i > i0 and j > j0:
            runs.append((range(i0, i), range(j0, j)))
            i0, j0 = i, j
    if i0 < len(a) or j0 < len(b):
        if runs:
            first, second = runs.pop()
            runs.append((range(first.start, len(a)), range(second.start, len(b))))
        else:
            runs.append((range(len(a)), range(len(b))))
    return runs


_VIEWS = ("reshape", "flatten", "unflatten", "squeeze", "unsqueeze")


@rule(*_VIEWS, "view_as", "reshape_as")
class View(Rule):
    """Row-major regrouping; also dimensions of size 1 coming and going."""

    def flow(self, call: Call, flow: Flow) -> None:
        source = call.args["self"]
        x, info = flow.axes(source), flow.info(call.node)
        made: list[Axis | None] = [None] * len(info.shape)
        for mine, theirs in _segments([a.size for a in x], info.shape):
            self._regroup(call, flow, [x[i] for i in mine], theirs, made)
        flow.set(call.node, [a for a in made if a is not None])
        if call.op in ("view_as", "reshape_as"):
            for a, b in zip(flow.axes(call.node), flow.axes(call.args["other"]), strict=True):
                a.merge(b)

    def _regroup(self, call: Call, flow: Flow, x: list[Axis], theirs: range, made: list[Axis | None]) -> None:
        info = flow.info(call.node)
        sizes = [info.shape[j] for j in theirs]
        if len(x) == 1 and len(sizes) == 1:
            made[theirs.start] = x[0]
            return
        refined = common_factors([a.size for a in x], sizes)
        if refined is None:
            new = [Axis(s, info.dynamic[j]) for s, j in zip(sizes, theirs, strict=True)]
            flow.freeze([*x, *new], call, "dimensions regrouped across their borders")
            made[theirs.start : theirs.stop] = new
            return
        before, after, atoms = refined
        factors = [Axis(s, s % PROBE == 0) for s in atoms]
        for factor in factors:
            if factor.dynamic:
                flow.freeze(factor, call, "follows the batch")
        for axis, part in zip(x, before, strict=True):
            flow.product(axis, [factors[k] for k in part])
        for j, part in zip(theirs, after, strict=True):
            if len(part) == 1:
                made[j] = factors[part[0]]
            else:
                made[j] = Axis(info.shape[j], info.dynamic[j])
                flow.product(made[j], [factors[k] for k in part])  # type: ignore[arg-type]

    def constants(self, call: Call, values: Values) -> None:
        before = [a.size for a in values.map.of[values.canonical(call.args["self"])]]
        after = [a.size for a in values.map.of[call.node]]
        refined = common_factors(before, after)
        if refined is None:
            return
        mine, theirs, atoms = refined
        for dim, part in enumerate(mine):
            given = values.slices(call.args["self"], dim) if part else None
            if given is None:
                continue
            table = given.reshape([atoms[k] for k in part])
            for target, other in enumerate(theirs):
                if not values.map.of[call.node][target].dynamic:
                    values.set(call.node, target, _project(table, part, other, atoms))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        y = shrink.axes(call.node)
        if call.op == "unflatten":
            if shrink.changed(call.node):
                dim = dim_of(call.args["dim"], len(shrink.axes(call.args["self"])))
                sizes = list(call.args["sizes"])
                new = [shrink.size(call.node, s, y[dim + i]) for i, s in enumerate(sizes)]
                shrink.set_args(call, sizes=new)
            return
        name = "size" if "size" in call.args else "shape"
        if name in call.args and shrink.changed(call.node, call.args["self"]):
            sizes = [shrink.size(call.node, s, axis) for s, axis in zip(call.args[name], y, strict=True)]
            shrink.set_args(call, **{name: sizes})


def _project(table: Tensor, part: list[int], other: list[int], atoms: list[int]) -> Tensor | None:
    """Constants over the atoms ``part`` seen along a dimension made of the atoms ``other``."""
    if not any(k in part for k in other):
        return None
    lost = [i for i, k in enumerate(part) if k not in other]
    result = table
    for i in reversed(lost):
        first = result.select(i, 0)
        same = (result == first.unsqueeze(i)).all(i)
        result = torch.where(same, first, torch.nan)
    kept = [k for k in part if k in other]
    result = result.reshape([atoms[k] if k in kept else 1 for k in other])
    return result.expand([atoms[k] for k in other]).reshape(-1)


@rule("permute", "transpose", "t", "movedim", "swapaxes", "moveaxis", "swapdims", "numpy_T", "mT")
class Permute(Rule):
    """Dimensions in another order."""

    def order(self, call: Call, rank: int) -> list[int]:
        """For each dimension of the result the dimension of the operand."""
        dims = list(range(rank))
        if call.op == "permute":
            return [dim_of(d, rank) for d in call.args["dims"]]
        if call.op in ("movedim", "moveaxis"):
            return _moved(rank, call)
        if call.op in ("t", "numpy_T"):
            return dims[::-1]
        first, second = (dim_of(d, rank) for d in (_swapped(call) if call.op != "mT" else (-2, -1)))
        dims[first], dims[second] = dims[second], dims[first]
        return dims

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        flow.set(call.node, [x[d] for d in self.order(call, len(x))])

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[call.node])
        for target, dim in enumerate(self.order(call, rank)):
            values.set(call.node, target, values.slices(call.args["self"], dim))


def _swapped(call: Call) -> tuple[int, int]:
    names = ("dim0", "dim1") if "dim0" in call.args else ("axis0", "axis1")
    return call.args[names[0]], call.args[names[1]]


def _moved(rank: int, call: Call) -> list[int]:
    source, destination = call.args["source"], call.args["destination"]
    pairs = (
        zip(source, destination, strict=True)
        if isinstance(source, (list, tuple))
        else [(source, destination)]
    )
    placed = {dim_of(d, rank): dim_of(s, rank) for s, d in pairs}
    rest = iter([d for d in range(rank) if d not in placed.values()])
    return [placed[i] if i in placed else next(rest) for i in range(rank)]


@rule("expand", "expand_as", "broadcast_to")
class Expand(Rule):
    """Dimensions of size 1, or new ones in front, repeated; all slices of such a dimension are equal."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, made = flow.axes(call.args["self"]), list(flow.fresh(flow.info(call.node)))
        lead = len(made) - len(x)
        for i, axis in enumerate(x):
            if axis.size == made[lead + i].size and axis.size != 1:
                made[lead + i] = axis
        if call.op == "expand_as":
            for i, axis in enumerate(flow.axes(call.args["other"])):
                made[i].merge(axis)
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        x, y = values.map.of[values.canonical(call.args["self"])], values.map.of[call.node]
        for dim in range(len(x)):
            target = len(y) - len(x) + dim
            given = values.slices(call.args["self"], dim)
            if given is not None and len(given) == y[target].size:
                values.set(call.node, target, given)
        whole = values.whole(call.args["self"])
        if whole is not None:
            for dim, axis in enumerate(y):
                if not axis.dynamic:
                    values.set(call.node, dim, torch.full((axis.size,), whole, dtype=torch.float64))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        if call.op != "expand_as" and shrink.changed(call.node):
            sizes = zip(call.args["size"], shrink.axes(call.node), strict=True)
            shrink.set_args(call, size=[shrink.size(call.node, s, axis) for s, axis in sizes])


@rule("repeat", "tile")
class Repeat(Rule):
    """``[n] → [r·n]``: the repetitions are a factor in front."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, info = flow.axes(call.args["self"]), flow.info(call.node)
        made = list(flow.fresh(info))
        lead = len(made) - len(x)
        flow.freeze(made[:lead], call, "repetitions")
        for i, axis in enumerate(x):
            target = made[lead + i]
            if target.size == axis.size and axis.dynamic == target.dynamic:
                made[lead + i] = axis
            elif target.dynamic or axis.dynamic:
                flow.freeze((axis, target), call, "repeated along the batch")
            else:
                times = Axis(target.size // axis.size)
                flow.freeze(times, call, "repetitions")
                flow.product(target, (times, axis))
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        x, y = values.map.of[values.canonical(call.args["self"])], values.map.of[call.node]
        for dim in range(len(x)):
            target = len(y) - len(x) + dim
            given = values.slices(call.args["self"], dim)
            if given is not None and not y[target].dynamic:
                values.set(call.node, target, given.repeat(y[target].size // len(given)))


@rule("repeat_interleave")
class RepeatInterleave(Rule):
    """``[n] → [n·r]`` with each slice repeated ``r`` times."""

    def flow(self, call: Call, flow: Flow) -> None:
        repeats, dim = call.get("repeats"), call.get("dim")
        if not isinstance(repeats, int) or dim is None:
            flow.freeze_call(call, "repetitions differ per slice")
            return
        x = flow.axes(call.args["self"])
        made = list(x)
        d = dim_of(dim, len(x))
        times = Axis(repeats)
        flow.freeze(times, call, "repetitions")
        made[d] = flow.fresh(flow.info(call.node))[d]
        if x[d].dynamic:
            flow.freeze(x[d], call, "repeated along the batch")
        else:
            flow.product(made[d], (x[d], times))
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        repeated = dim_of(call.args["dim"], len(values.map.of[call.node]))
        for dim, axis in enumerate(values.map.of[call.node]):
            given = values.slices(call.args["self"], dim)
            if given is not None and dim == repeated and not axis.dynamic:
                values.set(call.node, dim, given.repeat_interleave(call.args["repeats"]))
            elif dim != repeated:
                values.set(call.node, dim, given)
