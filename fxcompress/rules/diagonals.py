"""Triangles and diagonals of matrices: the two dimensions of the matrices stay, the others pass."""

from __future__ import annotations

from fxcompress.graph.calls import Call
from fxcompress.rules.flow import Flow, dim_of
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.values import Values, zeros


def _others(call: Call, rank: int) -> list[int]:
    """The dimensions that are not those of the matrix."""
    matrix = {dim_of(call.args[name], rank) for name in ("dim1", "dim2")}
    return [d for d in range(rank) if d not in matrix]


@rule("tril", "triu")
class Triangle(Rule):
    """Zero above or below a diagonal; a zero slice stays zero, also a row or a column."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["self"])
        flow.freeze(x[-2:], call, "the triangle goes by position")
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        for dim in range(len(values.map.of[call.node])):
            values.set(call.node, dim, zeros(values.slices(call.args["self"], dim)))


@rule("diagonal")
class Diagonal(Rule):
    """The diagonal of two dimensions as the last one."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, last = flow.axes(call.args["self"]), flow.fresh(flow.info(call.node))[-1]
        rest = _others(call, len(x))
        flow.freeze([last, *(a for d, a in enumerate(x) if d not in rest)], call, "a diagonal of it")
        flow.set(call.node, [*(x[d] for d in rest), last])

    def constants(self, call: Call, values: Values) -> None:
        source = call.args["self"]
        for target, dim in enumerate(_others(call, len(values.map.of[values.canonical(source)]))):
            values.set(call.node, target, values.slices(source, dim))


@rule("diag_embed")
class DiagonalMatrix(Rule):
    """The last dimension as the diagonal of two new ones; other dimensions keep their zero slices."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, made = flow.axes(call.args["self"]), list(flow.fresh(flow.info(call.node)))
        flow.freeze(x[-1], call, "a diagonal")
        rest = _others(call, len(made))
        flow.freeze([a for d, a in enumerate(made) if d not in rest], call, "a diagonal")
        for axis, target in zip(x[:-1], rest, strict=True):
            made[target] = axis
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        for dim, target in enumerate(_others(call, len(values.map.of[call.node]))):
            values.set(call.node, target, zeros(values.slices(call.args["self"], dim)))


@rule("trace", "diag")
class WholeMatrix(Rule):
    """Every slice of the matrix stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.freeze_call(call, f"{call.op} goes by position")
