"""Choosing slices of a dimension: ``slice``, ``select``, ``narrow``, ``index_select``, ``flip``, ``roll``,
``index``.

Each is a map from slices of the result to slices of the operand. After removal the same map over the kept
slices is written as the operator itself where it still can say it, as ``index_select`` otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from fxcompress.graph.calls import Call
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
        x = flow.axes(call.args["self"])
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
            super().flow(call, flow)

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
            if call.op == "narrow":
                shrink.set_args(call, start=start, length=end - start)
            else:
                shrink.set_args(call, start=start, end=end, step=1)
        else:
            shrink.gather(call, dim, index)


@rule("index_select")
class IndexSelect(_Chosen):
    """``self`` at a known index along one dimension."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        index = call.node.meta.get("index")
        if index is None:
            return None
        return {dim_of(call.args["dim"], len(shape)): index}

    def flow(self, call: Call, flow: Flow) -> None:
        known = flow.known(call.args["index"])
        if known is not None:
            size = flow.axes(call.args["self"])[call.args["dim"]].size
            call.node.meta["index"] = np.where(known.numpy() < 0, known.numpy() + size, known.numpy())
        super().flow(call, flow)
        if known is not None:
            flow.freeze(flow.axes(call.args["index"]), call, "an index")


@rule("flip")
class Flip(_Chosen):
    """Reversed dimensions: of the kept slices the reverse is the reverse of the kept ones."""

    def chosen(self, call: Call, shape: tuple[int, ...], values: Values | None) -> dict[int, Ints] | None:
        dims = call.args["dims"]
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
            index = call.args["index"] % x[dim].size
            shrink.set_args(call, index=int(shrink.kept(x[dim])[:index].sum()))


@rule("index")
class Index(Rule):
    """``self[i, j, …]`` with tensors: indexed dimensions stay; the others pass where their place is clear."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        indices: list[Any] = list(call.args["indices"])
        indexed = [d for d, index in enumerate(indices) if index is not None]
        boolean = any(is_tensor(i) and not _is_integer(flow, i) for i in indices)
        consecutive = indexed == list(range(indexed[0], indexed[-1] + 1))
        if boolean or not consecutive:
            flow.freeze_call(call, "indexing with a mask or with separated tensors")
            return
        for d in indexed:
            flow.freeze(x[d], call, "indexed by a tensor")
            flow.freeze(flow.axes(indices[d]), call, "an index")
        made = flow.fresh(flow.info(call.node))
        width = len(made) - (len(x) - len(indexed))
        flow.freeze(made[indexed[0] : indexed[0] + width], call, "indexed by a tensor")
        middle = made[indexed[0] : indexed[0] + width]
        flow.set(call.node, (*x[: indexed[0]], *middle, *x[indexed[-1] + 1 :]))

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[values.canonical(call.args["self"])]
        indexed = [d for d, index in enumerate(call.args["indices"]) if index is not None]
        shift = len(values.map.of[call.node]) - len(axes)
        for dim in range(len(axes)):
            same = [d for d in (dim, dim + shift) if 0 <= d < len(values.map.of[call.node])]
            target = same[0] if dim < indexed[0] else same[-1] if same else None
            if (
                dim in indexed
                or target is None
                or values.map.of[call.node][target].find() is not axes[dim].find()
            ):
                continue
            values.set(call.node, target, values.slices(call.args["self"], dim))


def _is_integer(flow: Flow, ref: Any) -> bool:
    return flow.info(ref).dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


_BY_POSITION = (
    "gather", "scatter", "scatter_add", "index_put", "index_add", "index_copy", "take", "take_along_dim",
    "topk", "diff", "bincount", "searchsorted", "masked_select", "nonzero", "kthvalue",
)  # fmt: skip


@rule(*_BY_POSITION)
class ByPosition(Rule):
    """Operators that address single elements by position: every slice around them stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.freeze_call(call, f"{call.op} addresses elements by position")


@rule("slice_scatter", "select_scatter")
class Scatter(Rule):
    """``self`` with part of one dimension replaced: that dimension stays, the others are shared."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, source = flow.axes(call.args["self"]), list(flow.axes(call.args["src"]))
        dim = dim_of(call.args["dim"], len(x))
        if call.op == "select_scatter":
            source.insert(dim, Axis(1))
        flow.freeze((x[dim], source[dim]), call, "part of it is replaced")
        for d, (a, b) in enumerate(zip(x, source, strict=True)):
            if d != dim:
                a.merge(b)
        flow.set(call.node, x)
