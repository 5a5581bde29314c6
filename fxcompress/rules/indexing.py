"""Choosing slices of a dimension: ``slice``, ``select``, ``narrow``, ``index_select``, ``flip``, ``roll``,
``index``.

Each is a map from slices of the result to slices of the operand. After removal the same map over the kept
slices is written as the operator itself where it still can say it, as ``index_select`` otherwise. Where the
map is known only at run time the addressed dimensions stay, and the others pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from fxcompress.graph.calls import Call, Ref, TensorInfo, call_of
from fxcompress.rules.axes import Axis, Ints
from fxcompress.rules.flow import Flow, dim_of, is_tensor
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


class _Chosen(Rule):
    """``result[k] = self[index[k]]`` along one or more dimensions."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        """Per dimension the operand's slice for each slice of the result; ``None`` if not known."""
        raise NotImplementedError(type(self).__name__)

    def _sizes(self, call: Call, axes: tuple[Axis, ...]) -> tuple[int, ...]:
        return tuple(a.size for a in axes)

    def flow(self, call: Call, flow: Flow) -> None:
        self.relate(call, flow, flow.axes(call.args["self"]))

    def relate(self, call: Call, flow: Flow, x: tuple[Axis, ...]) -> None:
        """Tie the chosen slices of ``x`` to those of the result."""
        chosen = self.chosen(call, self._sizes(call, x), None)
        if chosen is None:
            flow.freeze_call(call, f"{call.op} with positions known only at run time")
            return
        made = list(x)
        for dim, index in chosen.items():
            if x[dim].dynamic:
                flow.freeze_call(call, f"{call.op} on a dimension that follows the batch")
                return
            if len(index) == x[dim].size and bool((index == np.arange(len(index))).all()):
                continue
            made[dim] = Axis(len(index))
            flow.link(made[dim], range(len(index)), x[dim], index)
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[values.canonical(call.args["self"])]
        if call.node not in values.map.of:
            return
        chosen = self.chosen(call, self._sizes(call, axes), values)
        for dim in range(len(axes)):
            given = values.slices(call.args["self"], dim)
            if given is not None and chosen is not None:
                index = chosen.get(dim)
                values.set(call.node, dim, given if index is None else given[torch.from_numpy(index)])

    def shrink(self, call: Call, shrink: Shrink) -> None:
        x, y = shrink.axes(call.args["self"]), shrink.axes(call.node)
        chosen = self.chosen(call, self._sizes(call, x), shrink.values)
        changed = {
            d: i for d, i in (chosen or {}).items() if not (shrink.keeps_all(x[d]) and shrink.keeps_all(y[d]))
        }
        if not changed:
            return
        if len(changed) > 1:
            raise ValueError(f"{call.node}: more than one chosen dimension loses slices")
        dim, index = next(iter(changed.items()))
        rank = np.cumsum(shrink.kept(x[dim])) - 1
        self.restate(call, shrink, dim, rank[index[shrink.kept(y[dim])]])

    def restate(self, call: Call, shrink: Shrink, dim: int, index: Ints) -> None:
        """Say ``result[k] = self[index[k]]`` along ``dim``."""
        shrink.gather(call, dim, index)


@rule("slice", "narrow")
class Slice(_Chosen):
    """``self[start:end:step]`` along one dimension."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        dim = dim_of(call.args["dim"], len(shape))
        if call.op == "narrow":
            start, end, step = call.args["start"], None, 1
            if isinstance(start, int) and isinstance(call.args["length"], int):
                start += shape[dim] if start < 0 else 0
                end = start + call.args["length"]
        else:
            start, end, step = call.args["start"], call.args["end"], call.args["step"]
        if any(isinstance(v, fx.Node) for v in (start, end, step)) or (call.op == "narrow" and end is None):
            return None
        return {dim: np.arange(shape[dim])[slice(start, end, step)]}

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        dim = dim_of(call.args["dim"], len(x))
        info = flow.info(call.node)
        if info.shape[dim] == x[dim].size and info.dynamic[dim] == x[dim].dynamic:
            flow.set(call.node, x)
        elif x[dim].dynamic or info.dynamic[dim]:
            made = flow.fresh(info)
            flow.freeze((x[dim], made[dim]), call, "slice of positions")
            flow.set(call.node, (*x[:dim], made[dim], *x[dim + 1 :]))
        else:
            self.relate(call, flow, x)

    def constants(self, call: Call, values: Values) -> None:
        for dim, axis in enumerate(values.map.of[call.node]):
            given = values.slices(call.args["self"], dim)
            if given is not None and len(given) == axis.size:
                values.set(call.node, dim, given)
            elif given is not None and not axis.dynamic:
                shape = self._sizes(call, values.map.of[values.canonical(call.args["self"])])
                index = (self.chosen(call, shape, values) or {}).get(dim)
                values.set(call.node, dim, None if index is None else given[torch.from_numpy(index)])

    def shrink(self, call: Call, shrink: Shrink) -> None:
        x, y = shrink.axes(call.args["self"]), shrink.axes(call.node)
        dim = dim_of(call.args["dim"], len(x))
        if x[dim].find() is y[dim].find():
            whole = shrink.keeps_all(x[dim]) or call.op != "narrow"
            if not whole:
                shrink.set_args(call, length=shrink.count(x[dim]))
            elif isinstance(call.get("end"), int) and not shrink.keeps_all(x[dim]):
                shrink.set_args(call, start=0, end=shrink.count(x[dim]))
        elif not x[dim].dynamic:
            super().shrink(call, shrink)

    def restate(self, call: Call, shrink: Shrink, dim: int, index: Ints) -> None:
        if len(index) and bool((np.diff(index) == 1).all()):
            start, end = int(index[0]), int(index[-1]) + 1
            axis = shrink.axes(call.args["self"])[dim]
            count, length = shrink.count(axis), end - start
            # What was said from the end stays so: the dimension may have another size at run time.
            if (call.args["start"] or 0) < 0:
                start -= count
            if call.op == "narrow":
                shrink.set_args(call, start=start, length=length)
                return
            given = call.args["end"]
            if end == count and (given is None or not 0 <= given < axis.size):
                end = sys.maxsize
            elif given is not None and given < 0:
                end -= count
            shrink.set_args(call, start=start, end=end, step=1)
        else:
            shrink.gather(call, dim, index)


class _Indexed(_Chosen):
    """``self`` at an index that is known if it is computed from buffers and literals alone."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        found: dict[int, Ints] | None = call.node.meta.get("index")
        return found

    def remember(self, call: Call, flow: Flow, dim: int, index: Any) -> bool:
        """Note what ``index`` chooses along ``dim``; returns whether that is known."""
        call.node.meta.pop("index", None)
        size = flow.axes(call.args["self"])[dim].size
        known = _fixed(flow, index)
        if known is None or known.dim() != 1 or known.dtype is torch.bool:
            return False
        chosen = known.cpu().numpy()
        call.node.meta["index"] = {dim: np.where(chosen < 0, chosen + size, chosen)}
        return True


def _fixed(flow: Flow, ref: Any) -> torch.Tensor | None:
    """The value of a tensor that is computed from buffers and literals alone."""
    if not isinstance(ref, fx.Node):
        return flow.known(ref)
    call = call_of(ref)
    target = None if call is None else call.target
    if call is None or not isinstance(target, torch._ops.OpOverload) or not is_tensor(ref):
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    operands: dict[Ref, torch.Tensor] = {}
    for _, operand in call.refs():
        value = operands[operand] if operand in operands else _fixed(flow, operand)
        if value is None:
            return None
        operands[operand] = value
    result = Values.evaluate(call, operands)
    return result if isinstance(result, torch.Tensor) else None


@rule("index_select")
class IndexSelect(_Indexed):
    """``self`` at an index along one dimension."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        dim = dim_of(call.args["dim"], len(x))
        flow.freeze(flow.axes(call.args["index"]), call, "an index")
        if self.remember(call, flow, dim, call.args["index"]) and not x[dim].dynamic:
            self.relate(call, flow, x)
            return
        call.node.meta.pop("index", None)
        made = flow.fresh(flow.info(call.node))[dim]
        flow.freeze((x[dim], made), call, "indexed by a tensor")
        flow.set(call.node, (*x[:dim], made, *x[dim + 1 :]))

    def constants(self, call: Call, values: Values) -> None:
        if "index" in call.node.meta:
            super().constants(call, values)
            return
        rank = len(values.map.of[call.node])
        for dim in range(rank):
            if dim != dim_of(call.args["dim"], rank):
                values.set(call.node, dim, values.slices(call.args["self"], dim))


@rule("flip", "fliplr", "flipud")
class Flip(_Chosen):
    """Reversed dimensions: of the kept slices the reverse is the reverse of the kept ones."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        dims = call.get("dims", [1] if call.op == "fliplr" else [0])
        return {d: np.arange(shape[d])[::-1].copy() for d in (dim_of(d, len(shape)) for d in dims)}

    def shrink(self, call: Call, shrink: Shrink) -> None:
        """Nothing to restate."""


@rule("roll")
class Roll(_Chosen):
    """Rotated dimensions."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        dims, shifts = call.args["dims"], call.args["shifts"]
        if not dims:
            return None
        return {
            dim_of(d, len(shape)): np.roll(np.arange(shape[dim_of(d, len(shape))]), s)
            for d, s in zip(dims, shifts, strict=True)
        }


@rule("select")
class Select(Rule):
    """One slice of a dimension, which is needed; the dimension is gone from the result."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        dim = dim_of(call.args["dim"], len(x))
        index = call.args["index"]
        if not isinstance(index, int) or x[dim].dynamic:
            flow.freeze(x[dim], call, "one of its slices is chosen at run time")
        else:
            flow.need(x[dim], [index % x[dim].size])
        flow.set(call.node, (*x[:dim], *x[dim + 1 :]))

    def constants(self, call: Call, values: Values) -> None:
        source = call.args["self"]
        rank = len(values.map.of[values.canonical(source)])
        gone = dim_of(call.args["dim"], rank)
        for dim in range(rank):
            if dim != gone:
                values.set(call.node, dim if dim < gone else dim - 1, values.slices(source, dim))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        x = shrink.axes(call.args["self"])
        dim = dim_of(call.args["dim"], len(x))
        if not shrink.keeps_all(x[dim]):
            index, kept = call.args["index"], shrink.kept(x[dim])
            # What was said from the end stays so: the dimension may have another size at run time.
            shrink.set_args(call, index=int(kept[:index].sum()) if index >= 0 else -int(kept[index:].sum()))


@dataclass(frozen=True)
class Places:
    """Where the dimensions of ``self[i, j, …]`` come from."""

    indexed: tuple[int, ...]
    """Dimensions of the operand that tensors index."""
    passed: dict[int, int]
    """Dimension of the operand → dimension of the result, for the others."""
    width: int
    """How many dimensions the indices make together."""


def places_of(call: Call, rank: int, info_of: Callable[[Ref], TensorInfo]) -> Places:
    """An integer tensor indexes one dimension, a mask as many as it has; tensors that stand apart put the
    dimensions they make first.
    """
    dim = 0
    indexed: list[int] = []
    widths: list[int] = []
    entries: list[int] = []
    for entry, index in enumerate(call.args["indices"]):
        if index is None:
            dim += 1
            continue
        facts = info_of(index)
        mask = facts.dtype in (torch.bool, torch.uint8)
        count = len(facts.shape) if mask else 1
        indexed += range(dim, dim + count)
        widths.append(1 if mask else len(facts.shape))
        entries.append(entry)
        dim += count
    together = entries == list(range(entries[0], entries[-1] + 1))
    width, start = max(widths), indexed[0] if together else 0
    rest = [d for d in range(rank) if d not in indexed]
    passed = {d: i if i < start else i + width for i, d in enumerate(rest)}
    return Places(tuple(indexed), passed, width)


def facts_of(values: Values, ref: Ref) -> TensorInfo:
    axes = values.map.of[values.canonical(ref)]
    return TensorInfo(tuple(a.size for a in axes), values.dtype(ref), tuple(a.dynamic for a in axes))


@rule("index")
class Index(_Indexed):
    """``self[i, j, …]`` with tensors: a known index along one dimension chooses its slices; of others the
    indexed dimensions stay.
    """

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        indices = [(d, index) for d, index in enumerate(call.args["indices"]) if index is not None]
        for _, index in indices:
            flow.freeze(flow.axes(index), call, "an index")
        dim, first = indices[0]
        if len(indices) == 1 and self.remember(call, flow, dim, first) and not x[dim].dynamic:
            self.relate(call, flow, x)
            return
        call.node.meta.pop("index", None)
        places = places_of(call, len(x), flow.info)
        made = list(flow.fresh(flow.info(call.node)))
        for d, target in places.passed.items():
            made[target] = x[d]
        flow.freeze([x[d] for d in places.indexed], call, "indexed by a tensor")
        stay = [axis for i, axis in enumerate(made) if i not in places.passed.values()]
        flow.freeze(stay, call, "indexed by a tensor")
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        if "index" in call.node.meta:
            super().constants(call, values)
            return
        rank = len(values.map.of[values.canonical(call.args["self"])])
        for dim, target in places_of(call, rank, lambda ref: facts_of(values, ref)).passed.items():
            values.set(call.node, target, values.slices(call.args["self"], dim))
