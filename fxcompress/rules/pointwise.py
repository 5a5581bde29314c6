"""Pointwise operators with broadcasting, and those that act like one in eval mode.

``y[…] = f(a[…], b[…])``: axes of equal size are the same axis. A slice of the result is constant where all
operands are, with the value the operator itself computes from them (``sigmoid`` of 0 is 0.5); a product with
a zero slice is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Ref
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow, tensor_operands
from fxcompress.rules.registry import Rule, register, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values, zeros

_PRODUCTS = ("mul", "multiply")
_IDENTITIES = (
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "fxcompress.dropout",
    "contiguous", "clone", "detach", "alias", "lift_fresh_copy", "detach_copy", "to", "_to_copy", "type_as",
)  # fmt: skip
_UNTAGGED = (
    "log_sigmoid", "masked_fill", "where", "hardswish", "rsub", "true_divide", "max.other", "min.other",
    "__and__", "__or__", "__xor__", "floor_divide",
)  # fmt: skip
"""Pointwise operators some overload of which ATen does not tag as such."""


@rule("pointwise")
class Pointwise(Rule):
    """Any operator ATen tags as pointwise."""

    def flow(self, call: Call, flow: Flow) -> None:
        info = flow.info(call.node)
        operands = [flow.axes(ref) for ref in tensor_operands(call)]
        flow.set(
            call.node, [self._axis(flow, operands, i - len(info.shape), info) for i in range(len(info.shape))]
        )

    def _axis(self, flow: Flow, operands: list[tuple[Axis, ...]], back: int, info: Any) -> Axis:
        size = info.shape[back]
        found = [axes[back] for axes in operands if len(axes) >= -back and axes[back].size == size]
        if not found or size == 1:
            return found[0] if found else Axis(size, info.dynamic[back])
        for other in found[1:]:
            found[0].merge(other)
        return found[0]

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[call.node])
        operands = tensor_operands(call)
        for dim in range(rank):
            size = values.map.of[call.node][dim].size
            found = {ref: self._along(values, ref, dim - rank, size) for ref in operands}
            if all(v is None for v in found.values()):
                continue
            values.set(call.node, dim, self._combined(call, values, found, size))

    def _along(self, values: Values, ref: Ref, back: int, size: int) -> Tensor | None:
        """Constants of an operand along a dimension of the result: a vector, or one number for all slices."""
        rank = len(values.map.of[values.canonical(ref)])
        if rank >= -back and values.map.of[values.canonical(ref)][back].size == size and size > 1:
            return values.slices(ref, back + rank)
        number = values.whole(ref)
        return None if number is None else torch.tensor([number], dtype=torch.float64)

    def _combined(
        self, call: Call, values: Values, found: dict[Ref, Tensor | None], size: int
    ) -> Tensor | None:
        vectors = [v for v in found.values() if v is not None]
        if call.op in _PRODUCTS:
            zero = torch.zeros(size, dtype=torch.bool)
            for vector in vectors:
                zero |= vector == 0
        else:
            zero = None
        result = None
        if len(vectors) == len(found) == len({ref for _, ref in call.refs()}):  # no size among the operands
            operands = {ref: self._as_operand(values, ref, v) for ref, v in found.items() if v is not None}
            result = _real(values.evaluate(call, operands)).expand(size)
            for vector in vectors:
                result = result.masked_fill(vector.isnan(), torch.nan)
        if zero is not None and bool(zero.any()):
            result = torch.where(zero, 0.0, torch.nan if result is None else result)
        return result

    def _as_operand(self, values: Values, ref: Ref, vector: Tensor) -> Tensor:
        dtype = values.dtype(ref)
        return vector if dtype.is_floating_point else vector.nan_to_num().to(dtype)


def _real(value: Tensor) -> Tensor:
    """As float64, NaN where it has an imaginary part."""
    if value.is_complex():
        value = torch.where(value.imag == 0, value.real, torch.nan)
    return value.to(torch.float64)


class Identity(Pointwise):
    """Operators that return their input in eval mode, or a copy of it in another dtype or layout."""

    def _combined(
        self, call: Call, values: Values, found: dict[Ref, Tensor | None], size: int
    ) -> Tensor | None:
        first = next(iter(found.values()))
        return None if first is None else first.expand(size)

    def flow(self, call: Call, flow: Flow) -> None:
        flow.set(call.node, flow.axes(tensor_operands(call)[0]))


for _name in _UNTAGGED:
    register(_name, Pointwise())
for _name in _IDENTITIES:
    register(_name, Identity())


@rule("fxcompress.unless_training")
class UnlessTraining(Pointwise):
    """One of two tensors, by the mode: constant where both are, with one value."""

    def _combined(
        self, call: Call, values: Values, found: dict[Ref, Tensor | None], size: int
    ) -> Tensor | None:
        first, *others = [None if v is None else v.expand(size) for v in found.values()]
        for other in others:
            if first is None or other is None:
                return None
            first = torch.where(first == other, first, torch.nan)
        return first


@rule("prelu")
class PReLU(Pointwise):
    """``max(0, x) + a · min(0, x)`` with one ``a`` or one per channel (dimension 1)."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        weight = flow.axes(call.args["weight"])
        if weight and weight[0].size > 1:
            x[1 if len(x) > 1 else 0].merge(weight[0])
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        given = values.slices(call.args["self"], 1)
        weight = values.known(call.args["weight"])
        if given is not None and weight is not None:
            slope = weight.to(torch.float64)
            values.set(call.node, 1, torch.where(given >= 0, given, given * slope))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        weight = shrink.axes(call.args["weight"])
        if weight and call.module is not None:
            shrink.attributes(call, {}, num_parameters=shrink.count(weight[0]))


@rule("glu")
class GLU(Rule):
    """``a · sigmoid(b)`` over the two halves of a dimension:
    slice i of both goes with slice i of the result.
    """

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        made = list(x)
        dim = call.args["dim"] % len(x)
        half = x[dim].size // 2
        made[dim] = Axis(half)
        flow.link(made[dim], range(half), x[dim], range(half))
        flow.link(made[dim], range(half), x[dim], range(half, 2 * half))
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[call.node])
        dim = call.args["dim"] % rank
        given = values.slices(call.args["self"], dim)
        if given is not None:
            first, second = given.chunk(2)
            gated = first * torch.sigmoid(second)
            values.set(call.node, dim, torch.where(first == 0, 0.0, gated))
        for other in range(rank):
            if other != dim:
                values.set(call.node, other, zeros(values.slices(call.args["self"], other)))
