"""Fourier transforms and complex numbers.

A transform runs along some dimensions, which stay; the others pass, and a zero slice stays zero. Constants of
complex tensors are recorded only where they are zero.
"""

from __future__ import annotations

from torch import Tensor

from fxcompress.graph.calls import Call, Ref
from fxcompress.rules.flow import Flow, dim_of
from fxcompress.rules.pointwise import Pointwise
from fxcompress.rules.registry import Rule, register, rule
from fxcompress.rules.values import Values, zeros

_ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
_TWO = ("fft2", "ifft2", "rfft2", "irfft2", "hfft2", "ihfft2")
_MANY = ("fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn", "fftshift", "ifftshift")


@rule(*(f"fft_{name}" for name in (*_ONE, *_TWO, *_MANY)))
class Transform(Rule):
    """``torch.fft``: along one dimension, two or (by default) all."""

    def _dims(self, call: Call, rank: int) -> list[int]:
        dim, sizes = call.args["dim"], call.get("s")
        if dim is None:
            return list(range(rank if sizes is None else rank - len(sizes), rank) if sizes else range(rank))
        return [dim_of(d, rank) for d in (dim if isinstance(dim, (list, tuple)) else (dim,))]

    def flow(self, call: Call, flow: Flow) -> None:
        x, made = flow.axes(call.args["self"]), list(flow.fresh(flow.info(call.node)))
        dims = self._dims(call, len(x))
        flow.freeze([axis for d in dims for axis in (x[d], made[d])], call, f"{call.op} along it")
        flow.set(call.node, [made[d] if d in dims else axis for d, axis in enumerate(x)])

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[call.node])
        for dim in range(rank):
            if dim not in self._dims(call, rank):
                values.set(call.node, dim, zeros(values.slices(call.args["self"], dim)))


class Complex(Pointwise):
    """Conversions between real and complex numbers, element by element: zero where all operands are."""

    def _combined(
        self, call: Call, values: Values, found: dict[Ref, Tensor | None], size: int
    ) -> Tensor | None:
        return super()._combined(call, values, {ref: zeros(given) for ref, given in found.items()}, size)


for _op in ("real", "imag", "complex", "polar", "_conj", "resolve_conj", "resolve_neg"):
    register(_op, Complex())


@rule("view_as_real", "view_as_complex")
class Parts(Rule):
    """Real and imaginary part as a last dimension of two, which stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        if call.op == "view_as_complex":
            flow.freeze(x[-1], call, "real and imaginary part")
            flow.set(call.node, x[:-1])
        else:
            parts = flow.fresh(flow.info(call.node))[-1]
            flow.freeze(parts, call, "real and imaginary part")
            flow.set(call.node, (*x, parts))

    def constants(self, call: Call, values: Values) -> None:
        x = values.map.of[values.canonical(call.args["self"])]
        for dim in range(len(x) - (call.op == "view_as_complex")):
            values.set(call.node, dim, zeros(values.slices(call.args["self"], dim)))
