"""Reductions, softmax and cumulative operators.

Dimensions that stay pass through. A reduced one stays whole, except under a sum, where a zero slice adds
nothing: a mean over channels divides by their number, a maximum sees every channel.
"""

from __future__ import annotations

import math

import torch

from fxcompress.graph.calls import Call, TensorInfo, operand
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, nonzero
from fxcompress.rules.flow import Flow, dim_of
from fxcompress.rules.registry import Rule, register, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


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
            if isinstance(call.node.meta["tensor"], TensorInfo):
                values.set(call.node, target, result)


class KeepsConstant(Reduction):
    """Mean, maximum, minimum, median of a constant slice are that constant."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return given


class KeepsZero(Reduction):
    """Sums and norms of a zero slice are zero."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return torch.where(given == 0, 0.0, torch.nan)


@rule("mean", "fxcompress.mean", "amax", "fxcompress.amax", "amin", "fxcompress.amin")
class Mean(KeepsConstant):
    """A mean divides by how many slices there are, an extremum sees all: they stay, or it is restricted to
    those that do.
    """

    def reduced(self, call: Call, flow: Flow, dims: list[int]) -> None:
        flow.statistics(call, dims, f"{call.op.removeprefix('fxcompress.')} over it")

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.unrestrict(call)


for _op in ("median", "max", "min"):
    register(_op, KeepsConstant())
for _op in ("norm", "any", "prod", "nansum", "count_nonzero"):
    register(_op, KeepsZero())
for _op in ("all", "argmax", "argmin", "logsumexp", "var_mean", "std_mean", "aminmax", "mode"):
    register(_op, Reduction())


@rule("var", "std", "fxcompress.var", "fxcompress.std")
class Variance(Mean):
    """Variance and standard deviation; those of a constant slice are zero."""

    def of_constant(self, call: Call, given: torch.Tensor) -> torch.Tensor | None:
        return torch.where(given == 0, 0.0, torch.nan)


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
    """Softmax and cumulative operators: the dimension they run along stays, the others pass."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        if x:
            flow.freeze([x[d] for d in _dims(call, len(x))], call, f"{call.op} along it")
        if isinstance(call.node.meta["tensor"], TensorInfo):
            flow.set(call.node, x)
        else:
            flow.set_several(call.node, [x] * len(call.node.meta["tensor"]))

    def constants(self, call: Call, values: Values) -> None:
        if call.op not in ("cumsum", "cumprod") or not isinstance(call.node.meta["tensor"], TensorInfo):
            return
        rank = len(values.map.of[call.node])
        for dim in range(rank):
            given = values.slices(operand(call), dim)
            if given is not None and dim not in _dims(call, rank):
                values.set(call.node, dim, torch.where(given == 0, 0.0, torch.nan))


@rule("softmax", "fxcompress.softmax")
class Softmax(Rule):
    """The dimension it runs along stays, or it is restricted to the slices that do; the others pass."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        flow.statistics(call, _dims(call, len(x)), "softmax along it")
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        mask = values.known(call.get("mask"))
        if mask is not None:
            dim = _dims(call, len(values.map.of[call.node]))[0]
            values.set(call.node, dim, torch.where(mask == 0, 0.0, torch.nan).double())

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.unrestrict(call)


for _op in (
    "log_softmax",
    "_softmax",
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    "logcumsumexp",
    "sort",
):
    register(_op, AlongOne())
