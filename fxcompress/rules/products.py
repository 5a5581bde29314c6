"""Products of tensors besides ``matmul`` and ``einsum``, and the distances and similarities made of them.

All are an einsum: labels missing from the result are summed over. A slice that is zero on one side of a
product adds nothing; of a cosine similarity it has to be zero on both, as each side's norm counts it; of a
distance it has to be the same constant on both.

    cosine  Σ_i x_i y_i / (max(|x|, eps) · max(|y|, eps))           distance  (Σ_i |x_i − y_i|^p)^(1/p)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Ref
from fxcompress.rules.axes import Bools, Contraction
from fxcompress.rules.contraction import Need
from fxcompress.rules.flow import Flow, dim_of, is_tensor
from fxcompress.rules.linear import _Summed
from fxcompress.rules.pointwise import Pointwise
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values

Equation = tuple[list[list[str]], list[str]]


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}" for i in range(count)]


def _aligned(ranks: list[int]) -> list[list[str]]:
    """Labels of operands that broadcast against each other."""
    return [[f"d{i}" for i in range(max(ranks) - rank, max(ranks))] for rank in ranks]


@rule("dot", "vdot", "mv", "outer", "inner", "linalg_vecdot", "tensordot")
class Product(_Summed):
    """Products of two tensors, each with an equation of its own."""

    def operands(self, call: Call) -> list[Ref]:
        return [v for name, v in call.args.items() if is_tensor(v) and name != "out"]

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        a, b = ranks
        if call.op == "outer":
            return [["m"], ["n"]], ["m", "n"]
        if call.op == "linalg_vecdot":
            labels = _aligned(ranks)
            dim = call.args["dim"]
            summed = labels[0][dim]
            if dim >= 0 or labels[1][dim] != summed:
                raise ValueError("a dimension counted from the front")
            return labels, [name for name in labels[int(b > a)] if name != summed]
        pairs = self._pairs(call, a, b)
        left, right = _names("a", a), _names("b", b)
        for mine, theirs in pairs:
            right[theirs] = left[mine]
        summed_names = {left[mine] for mine, _ in pairs}
        return [left, right], [name for name in (*left, *right) if name not in summed_names]

    def _pairs(self, call: Call, a: int, b: int) -> list[tuple[int, int]]:
        """The dimensions summed over."""
        if call.op == "tensordot":
            pairs = zip(call.args["dims_self"], call.args["dims_other"], strict=True)
            return [(dim_of(mine, a), dim_of(theirs, b)) for mine, theirs in pairs]
        return [(a - 1, b - 1)]


@rule("transformers::grouped_mm_fallback")
class Grouped(_Summed):
    """``y[n] = x[n] w[e(n)]``: each row is multiplied by the matrix of its group (a mixture of experts).

    Rows are sorted by group; ``offs`` says where each group ends.
    """

    def operands(self, call: Call) -> list[Ref]:
        return [call.args["input"], call.args["weight"]]

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        return [["n", "k"], ["e", "k", "m"]], ["n", "m"]

    def flow(self, call: Call, flow: Flow) -> None:
        flow.freeze(flow.axes(call.args["input"])[0], call, "rows belong to groups")
        groups = (flow.axes(call.args["weight"])[0], *flow.axes(call.args["offs"]))
        flow.freeze(groups, call, "groups are chosen at run time")
        super().flow(call, flow)


@rule("linalg_multi_dot", "chain_matmul")
class Chain(_Summed):
    """``A B C …``."""

    def operands(self, call: Call) -> list[Ref]:
        tensors: list[Ref] = list(call.args["tensors" if "tensors" in call.args else "matrices"])
        return tensors

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        if any(rank != 2 for rank in ranks):
            raise ValueError("a vector in a chain of matrices")
        labels = [[f"m{i}", f"m{i + 1}"] for i in range(len(ranks))]
        return labels, ["m0", f"m{len(ranks)}"]


_ADDED = {
    "baddbmm": ("nmk", "nkp", "nmp"),
    "addbmm": ("nmk", "nkp", "mp"),
    "addmv": ("mk", "k", "m"),
    "addr": ("m", "p", "mp"),
}


@rule("baddbmm", "addbmm", "addmv", "addr")
class Added(_Summed):
    """``β · self + α · a b``: zero slices of the product leave those of ``self``."""

    def operands(self, call: Call) -> list[Ref]:
        return [v for name, v in call.args.items() if name != "self" and is_tensor(v)]

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        first, second, result = _ADDED[call.op]
        return [list(first), list(second)], list(result)

    def flow(self, call: Call, flow: Flow) -> None:
        super().flow(call, flow)
        for mine, theirs in zip(
            reversed(flow.axes(call.node)), reversed(flow.axes(call.args["self"])), strict=False
        ):
            if mine.size == theirs.size:
                mine.merge(theirs)

    def constants(self, call: Call, values: Values) -> None:
        operands, axes = self.operands(call), values.map.of[call.node]
        labels, result = self.equation(call, [])
        added = call.args["self"]
        theirs, number = values.map.of[values.canonical(added)], values.whole(added)
        for dim, name in enumerate(result):
            back, size = dim - len(result), axes[dim].size
            given = None if number is None else torch.full((size,), number, dtype=torch.float64)
            if len(theirs) >= -back and theirs[back].size == size:
                given = values.slices(added, len(theirs) + back)
            zero = torch.zeros(size, dtype=torch.bool)
            for ref, names in zip(operands, labels, strict=True):
                found = values.zero(ref, names.index(name)) if name in names else None
                zero |= torch.zeros(size, dtype=torch.bool) if found is None else found
            if given is not None:
                values.set(call.node, dim, torch.where(zero, given * call.args["beta"], torch.nan))


@rule("bilinear")
class Bilinear(_Summed):
    """``y[…, o] = b[o] + Σ_ij x1[…, i] w[o, i, j] x2[…, j]``."""

    def operands(self, call: Call) -> list[Ref]:
        return [call.args["input1"], call.args["input2"], call.args["weight"]]

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        batch = _names("n", ranks[0] - 1)
        return [[*batch, "i"], [*batch, "j"], ["o", "i", "j"]], [*batch, "o"]

    def flow(self, call: Call, flow: Flow) -> None:
        super().flow(call, flow)
        if is_tensor(call.args["bias"]):
            flow.axes(call.node)[-1].merge(flow.axes(call.args["bias"])[0])

    def constants(self, call: Call, values: Values) -> None:
        weight, bias = values.known(call.args["weight"]), values.known(call.args["bias"])
        if weight is None or (bias is None and call.args["bias"] is not None):
            return
        rank = len(values.map.of[call.node])
        offset = torch.zeros(len(weight)).double() if bias is None else bias.to(torch.float64)
        silent = (weight == 0).flatten(1).all(1)
        values.set(call.node, rank - 1, torch.where(silent, offset, torch.nan))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        out, first, second = (shrink.count(axis) for axis in shrink.axes(call.args["weight"]))
        shrink.attributes(call, {}, in1_features=first, in2_features=second, out_features=out)


class _Compared(_Summed):
    """Of two tensors that are compared a slice may go only where both sides agree on it."""

    def operands(self, call: Call) -> list[Ref]:
        return [call.args["x1"], call.args["x2"]]

    def agreed(self, first: Tensor, second: Tensor) -> Tensor:
        """Slices that add nothing, given the constants of both sides."""
        raise NotImplementedError(type(self).__name__)

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        call = contraction.call
        operands = self.operands(call)
        axes = [values.map.of[values.canonical(ref)] for ref in operands]
        labels, result = self.equation(call, [len(a) for a in axes])
        (name,) = {name for names in labels for name in names if name not in result}
        dims = [names.index(name) for names in labels]
        if axes[0][dims[0]].size != axes[1][dims[1]].size:
            return None
        found = [values.slices(ref, dim) for ref, dim in zip(operands, dims, strict=True)]
        if found[0] is None or found[1] is None:
            return None
        needed: Bools = ~self.agreed(found[0], found[1]).numpy()
        return Need(np.asarray(needed), None)


@rule("cosine_similarity")
class CosineSimilarity(_Compared):
    """Zero wherever one side is."""

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        labels = _aligned(ranks)
        every = labels[0] if ranks[0] >= ranks[1] else labels[1]
        summed = every[call.args["dim"]]
        if any(summed not in names for names in labels):
            raise ValueError("the compared dimension is broadcast")
        return labels, [name for name in every if name != summed]

    def agreed(self, first: Tensor, second: Tensor) -> Tensor:
        return (first == 0) & (second == 0)


@rule("cdist")
class Distances(_Compared):
    """Distances between all rows of two matrices."""

    def equation(self, call: Call, ranks: list[int]) -> Equation:
        batch = _names("n", max(ranks) - 2)
        labels = [[*batch[len(batch) - rank + 2 :], row, "k"] for rank, row in zip(ranks, "mp", strict=True)]
        return labels, [*batch, "m", "p"]

    def agreed(self, first: Tensor, second: Tensor) -> Tensor:
        return first == second

    def constants(self, call: Call, values: Values) -> None:
        """The distance from a row of zeros is a norm."""


@rule("pairwise_distance")
class PairwiseDistance(Rule):
    """``‖x1 − x2 + eps‖``: every feature adds eps, so all stay."""

    def flow(self, call: Call, flow: Flow) -> None:
        operands = [flow.axes(call.args[name]) for name in ("x1", "x2")]
        made = list(flow.fresh(flow.info(call.node)))
        flow.freeze([axes[-1] for axes in operands], call, "a distance over it")
        rank = len(made) - 1 if call.args["keepdim"] else len(made)
        for back in range(2, rank + 2):
            axes = [a[-back] for a in operands if len(a) >= back]
            full = [axis for axis in axes if axis.size == made[rank - back + 1].size]
            for axis in full:
                axis.merge(full[0])
            if full:
                made[rank - back + 1] = full[0]
        flow.set(call.node, made)


@rule("linalg_cross", "cross")
class Cross(Pointwise):
    """The vector product along a dimension of three, which stays; zero where one side is."""

    def _dim(self, call: Call, shape: tuple[int, ...]) -> int:
        dim = call.args["dim"]
        return shape.index(3) if dim is None else dim_of(dim, len(shape))

    def flow(self, call: Call, flow: Flow) -> None:
        super().flow(call, flow)
        made = flow.axes(call.node)
        flow.freeze(made[self._dim(call, tuple(a.size for a in made))], call, "vectors along it")

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[call.node]
        for dim, axis in enumerate(axes):
            if dim == self._dim(call, tuple(a.size for a in axes)):
                continue
            zero = torch.zeros(axis.size, dtype=torch.bool)
            for name in ("self", "other"):
                given = self._along(values, call.args[name], dim - len(axes), axis.size)
                zero |= False if given is None else given == 0
            values.set(call.node, dim, torch.where(zero, 0.0, torch.nan).double())


@rule("kron")
class Kronecker(Rule):
    """``result[(i, j)] = a[i] b[j]`` in every dimension; zero where one side is."""

    def flow(self, call: Call, flow: Flow) -> None:
        operands = [flow.axes(call.args[name]) for name in ("self", "other")]
        made = list(flow.fresh(flow.info(call.node)))
        for back in range(1, len(made) + 1):
            factors = [axes[-back] for axes in operands if len(axes) >= back]
            if sum(axis.size > 1 for axis in factors) > 1 and any(axis.dynamic for axis in factors):
                flow.freeze((*factors, made[-back]), call, "repeats a dimension that follows the batch")
            else:
                flow.product(made[-back], [axis for axis in factors if axis.size > 1])
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[call.node]
        refs = [call.args["self"], call.args["other"]]
        for dim, axis in enumerate(axes):
            zero = torch.zeros((), dtype=torch.bool)
            for ref in refs:
                theirs = values.map.of[values.canonical(ref)]
                mine = dim - len(axes) + len(theirs)
                found = values.zero(ref, mine) if mine >= 0 else None
                size = theirs[mine].size if mine >= 0 else 1
                found = torch.zeros(size, dtype=torch.bool) if found is None else found
                zero = (zero[..., None] | found).reshape(-1)
            if len(zero) == axis.size:
                values.set(call.node, dim, torch.where(zero, 0.0, torch.nan).double())
