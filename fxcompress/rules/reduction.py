"""Reductions, softmax, sorting and cumulative operators.

Dimensions that stay pass through. A reduced one stays whole, except under a sum, where a zero slice adds
nothing: a mean over channels divides by their number, a maximum sees every channel. Along another dimension a
constant slice stays constant: its maximum, its sorted and its topmost values are the constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fxcompress.graph.calls import Call, TensorInfo, operand
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, nonzero
from fxcompress.rules.flow import Flow, dim_of, is_tensor
from fxcompress.rules.registry import Rule, register, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values, zeros


def _dims(call: Call, rank: int) -> list[int]:
    given = call.get("dim", call.get("dims"))
    if given is None or given == []:
        return list(range(rank))
    return [dim_of(d, rank) for d in (given if isinstance(given, (list, tuple)) else [given])]


def _kept_dims(call: Call, rank: int) -> dict[int, int]:
    """Dimension of the operand → dimension of the result, for those not reduced."""
    reduced = set(_dims(call, rank))
    if call.get("keepdim"):
        return {d: d for d in range(rank) if d not in reduced}
    return {d: i for i, d in enumerate(d for d in range(rank) if d not in reduced)}


class Reduction(Rule):
    """Reductions whose reduced dimensions stay whole."""

    holding = 1
    """How many results hold what was reduced, where there are several (the others hold positions)."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        """The reduction of slices that are constant."""
        return None

    def reduced(self, call: Call, flow: Flow, dims: list[int]) -> None:
        axes = flow.axes(operand(call))
        flow.freeze([axes[d] for d in dims], call, f"{call.op} over it")

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        self.reduced(call, flow, _dims(call, len(x)))
        kept = _kept_dims(call, len(x))
        value = call.node.meta["tensor"]
        several = value if isinstance(value, tuple) else (value,)
        rank = len(several[0].shape)
        by_target = {target: x[d] for d, target in kept.items()}
        made = tuple(by_target.get(i, Axis(1)) for i in range(rank))
        if isinstance(value, TensorInfo):
            flow.set(call.node, made)
        else:
            flow.set_several(call.node, [made] * len(several))

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[values.canonical(operand(call))])
        for dim, target in _kept_dims(call, rank).items():
            given = values.slices(operand(call), dim)
            result = None if given is None else self.of_constant(call, given)
            one = isinstance(call.node.meta["tensor"], TensorInfo)
            for index in (None,) if one else range(self.holding):
                values.set(call.node, target, result, index)


class KeepsConstant(Reduction):
    """Mean, maximum, minimum, median of a constant slice are that constant."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return given


class KeepsZero(Reduction):
    """Sums and norms of a zero slice are zero."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return zeros(given)


@rule("mean", "fxcompress.mean", "amax", "fxcompress.amax", "amin", "fxcompress.amin")
class Mean(KeepsConstant):
    """A mean divides by how many slices there are, an extremum sees all: they stay, or it is restricted to
    those that do.
    """

    def reduced(self, call: Call, flow: Flow, dims: list[int]) -> None:
        flow.statistics(call, dims, f"{call.op.removeprefix('fxcompress.')} over it")

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.unrestrict(call)


class Extremes(KeepsConstant):
    """Minimum and maximum at once."""

    holding = 2


for _op in ("max", "min", "median", "nanmedian", "kthvalue", "mode", "quantile.scalar"):
    register(_op, KeepsConstant())
register("aminmax", Extremes())
for _op in ("any", "prod", "nansum", "count_nonzero"):
    register(_op, KeepsZero())
for _op in ("all", "argmax", "argmin", "logsumexp", "var_mean", "std_mean"):
    register(_op, Reduction())


@rule("var", "std", "fxcompress.var", "fxcompress.std")
class Variance(Mean):
    """Variance and standard deviation; those of a constant slice are zero."""

    def reduced(self, call: Call, flow: Flow, dims: list[int]) -> None:
        super().reduced(call, flow, dims)
        correction, unbiased = call.get("correction"), call.get("unbiased")
        less = (1 if unbiased is None else int(unbiased)) if correction is None else correction
        reduced = [flow.axes(operand(call))[d] for d in dims]
        if sum(axis.size > 1 for axis in reduced) == 1:
            for root in (axis.find() for axis in reduced):
                root.least = min(root.size, max(root.least, math.floor(less) + 1))

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return zeros(given)


@rule("sum", "linalg_vector_norm")
class Sum(KeepsZero):
    """Sums, also of powers as in norms: zero slices may go."""

    def reduced(self, call: Call, flow: Flow, dims: list[int]) -> None:
        order = call.get("ord", 2)
        if order <= 0 or order == math.inf:
            super().reduced(call, flow, dims)
            return
        for dim in dims:
            flow.contract(call, operand(call), dim)

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        return nonzero(contraction, values)


class AlongOne(Rule):
    """Operators along one dimension, which stays; the others pass."""

    def __init__(self, of_constant: Callable[[torch.Tensor, int], torch.Tensor] | None = None) -> None:
        """``of_constant``: the constants of the (first) result, given those of the operand along another
        dimension and the size of the one it runs along.
        """
        self.of_constant = of_constant

    def _along(self, call: Call, rank: int) -> list[int]:
        return [0] if call.op == "msort" else _dims(call, rank)

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        dims = self._along(call, len(x))
        flow.freeze([x[d] for d in dims if d < len(x)], call, f"{call.op} along it")
        for name in ("prepend", "append"):
            if is_tensor(call.get(name)):
                for d, axis in enumerate(flow.axes(call.args[name])):
                    if d in dims:
                        flow.freeze(axis, call, f"{call.op} along it")
                    else:
                        axis.merge(x[d])
        value = call.node.meta["tensor"]
        results = (value,) if isinstance(value, TensorInfo) else value
        made = [self._result(call, flow, x, dims, info) for info in results]
        if isinstance(value, TensorInfo):
            flow.set(call.node, made[0])
        else:
            flow.set_several(call.node, made)

    def _result(
        self, call: Call, flow: Flow, x: tuple[Axis, ...], dims: list[int], info: TensorInfo
    ) -> tuple[Axis, ...]:
        fresh = flow.fresh(info)
        flow.freeze(fresh, call, f"{call.op} along it")
        return tuple(
            f if d in dims and a.size != f.size else a for d, (a, f) in enumerate(zip(x, fresh, strict=True))
        )

    def constants(self, call: Call, values: Values) -> None:
        x = values.map.of[values.canonical(operand(call))]
        dims = self._along(call, len(x))
        if self.of_constant is None or any(x[d].dynamic for d in dims if d < len(x)):
            return
        index = None if isinstance(call.node.meta["tensor"], TensorInfo) else 0
        for dim in (d for d in range(len(x)) if d not in dims):
            given = values.slices(operand(call), dim)
            for name in ("prepend", "append"):
                if given is not None and is_tensor(call.get(name)):
                    more = values.slices(call.args[name], dim)
                    given = None if more is None else torch.where(given == more, given, torch.nan)
            if given is not None:
                values.set(call.node, dim, self.of_constant(given, x[dims[0]].size), index)


def _same(given: torch.Tensor, size: int) -> torch.Tensor:
    return given


def _zero(given: torch.Tensor, size: int) -> torch.Tensor:
    return torch.where(given == 0, 0.0, torch.nan)


class Softmax(AlongOne):
    """The dimension it runs along stays, or it is restricted to the slices that do."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        flow.statistics(call, _dims(call, len(x)), "softmax along it")
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        mask = values.known(call.get("mask"))
        if mask is None:
            super().constants(call, values)
        else:
            dim = _dims(call, len(values.map.of[call.node]))[0]
            values.set(call.node, dim, torch.where(mask == 0, 0.0, torch.nan).double())

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.unrestrict(call)


_softmax = Softmax(lambda given, size: given * 0 + 1 / size)
for _op in ("softmax", "fxcompress.softmax"):
    register(_op, _softmax)
register("_softmax", AlongOne(_softmax.of_constant))
register("log_softmax", AlongOne(lambda given, size: given * 0 - math.log(size)))
for _op in ("sort", "msort", "topk", "cummax", "cummin"):
    register(_op, AlongOne(_same))
for _op in ("cumsum", "cumprod"):
    register(_op, AlongOne(_zero))
register("diff", AlongOne(lambda given, size: given * 0))
for _op in ("argsort", "logcumsumexp"):
    register(_op, AlongOne())
