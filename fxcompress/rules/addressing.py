"""Elements at positions known only at run time: ``gather``, ``scatter``, ``index_put``, look-ups and windows.

The addressed dimension stays whole; the others pass, as each of their slices is treated by itself. Where an
index or what it writes is shorter than the tensor, its slices are the first ones of the tensor's.
"""

from __future__ import annotations

from typing import Any

import torch

from fxcompress.graph.calls import Call
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow, dim_of, is_tensor
from fxcompress.rules.indexing import Places, facts_of, places_of
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values, zeros


def _share(flow: Flow, call: Call, part: Axis, whole: Axis) -> None:
    """Slice k of ``part`` goes with slice k of ``whole``, which may have more."""
    if part.size == whole.size:
        part.merge(whole)
    elif part.dynamic or whole.dynamic:
        flow.freeze((part, whole), call, "part of a dimension that follows the batch")
    else:
        flow.link(part, range(part.size), whole, range(part.size))


def _overwritten(old: torch.Tensor | None, new: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """Constants of slices of which the first ``size`` are partly overwritten."""
    if old is None:
        return None
    result = old.clone()
    same = torch.zeros(size, dtype=torch.bool) if new is None else old[:size] == new[:size]
    result[:size] = torch.where(same, old[:size], torch.nan)
    return result


@rule("index_put")
class IndexPut(Rule):
    """``self`` with ``self[i, j, …] = values``: indexed dimensions stay, the others are shared."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, source = flow.axes(call.args["self"]), flow.axes(call.args["values"])
        places = places_of(call, len(x), flow.info)
        flow.freeze([x[d] for d in places.indexed], call, "part of it is replaced")
        for index in call.args["indices"]:
            if index is not None:
                flow.freeze(flow.axes(index), call, "an index")
        for back, axis in enumerate(reversed(source), start=1):
            shared = self._shared(places, back)
            if shared is None:
                flow.freeze(axis, call, "values of an index")
            elif axis.size == x[shared].size:
                axis.merge(x[shared])
        flow.set(call.node, x)

    def _shared(self, places: Places, back: int) -> int | None:
        """The dimension of ``self`` that the ``back``-th last dimension of the values is."""
        rank = len(places.passed) + places.width
        return next((d for d, target in places.passed.items() if target == rank - back), None)

    def constants(self, call: Call, values: Values) -> None:
        source = call.args["values"]
        axes, theirs = values.map.of[call.node], values.map.of[values.canonical(source)]
        places = places_of(call, len(axes), lambda ref: facts_of(values, ref))
        whole = values.whole(source)
        for dim in places.passed:
            size = axes[dim].size
            new = None if whole is None else torch.full((size,), whole, dtype=torch.float64)
            for back in range(1, len(theirs) + 1):
                if self._shared(places, back) == dim and theirs[-back].size == size:
                    new = values.slices(source, len(theirs) - back)
            old = values.slices(call.args["self"], dim)
            if call.args["accumulate"]:
                old, new = zeros(old), zeros(new)
            values.set(call.node, dim, _overwritten(old, new, size))


@rule("gather")
class Gather(Rule):
    """``result[i, k] = self[index[i, k], k]``: the addressed dimension stays, the others are shared."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, index = flow.axes(call.args["self"]), flow.axes(call.args["index"])
        if not x or len(x) != len(index):
            flow.freeze_call(call, "gather from a single number")
            return
        dim = dim_of(call.args["dim"], len(x))
        flow.freeze(x[dim], call, "addressed by an index")
        for d, (mine, theirs) in enumerate(zip(x, index, strict=True)):
            if d != dim:
                _share(flow, call, theirs, mine)
        flow.set(call.node, index)

    def constants(self, call: Call, values: Values) -> None:
        x, made = values.map.of[values.canonical(call.args["self"])], values.map.of[call.node]
        if len(x) != len(made):
            return
        for d, (mine, theirs) in enumerate(zip(x, made, strict=True)):
            given = values.slices(call.args["self"], d)
            if given is not None and d != dim_of(call.args["dim"], len(x)) and mine.size >= theirs.size:
                values.set(call.node, d, given[: theirs.size])


@rule(
    "scatter", "scatter_add", "scatter_reduce",
    "index_add", "index_copy", "index_fill", "index_reduce",
)  # fmt: skip
class Scatter(Rule):
    """``self`` with elements at an index along one dimension replaced, added to or reduced with others: that
    dimension stays, the others are shared.
    """

    def _source(self, call: Call) -> Any:
        """What is written: a tensor or a number."""
        return next(call.args[name] for name in ("src", "source", "value") if name in call.args)

    def flow(self, call: Call, flow: Flow) -> None:
        x, index = flow.axes(call.args["self"]), flow.axes(call.args["index"])
        source = flow.axes(self._source(call)) if is_tensor(self._source(call)) else ()
        if not x:
            flow.freeze_call(call, f"{call.op} of a number")
            return
        dim = dim_of(call.args["dim"], len(x))
        if len(index) != len(x):  # one index for the whole dimension
            flow.freeze(index, call, "an index")
            index = x
        if len(source) != len(x):
            flow.freeze(source, call, "what is written")
            source = x
        for d in range(len(x)):
            if d == dim:
                flow.freeze((x[d], index[d], source[d]), call, "part of it is replaced")
            else:
                _share(flow, call, index[d], x[d])
                _share(flow, call, index[d], source[d])
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        index, source = values.map.of[values.canonical(call.args["index"])], self._source(call)
        axes = values.map.of[call.node]
        if not axes:
            return
        for d, axis in enumerate(axes):
            if d == dim_of(call.args["dim"], len(axes)):
                continue
            size = index[d].size if call.op.startswith("scatter") else axis.size
            old, new = values.slices(call.args["self"], d), self._new(values, source, d, axis.size)
            if "reduce" in call.args or call.op.endswith("_add"):
                old, new = zeros(old), zeros(new)
            values.set(call.node, d, _overwritten(old, new, size))

    def _new(self, values: Values, source: Any, dim: int, size: int) -> torch.Tensor | None:
        if is_tensor(source) and len(values.map.of[values.canonical(source)]) > dim:
            return values.slices(source, dim)
        number = values.whole(source) if is_tensor(source) else source
        return None if number is None else torch.full((size,), float(number), dtype=torch.float64)


@rule(
    "take", "bincount", "masked_select", "masked_scatter", "nonzero", "histc", "cartesian_prod",
)  # fmt: skip
class ByPosition(Rule):
    """Operators on elements in their order: every slice around them stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.freeze_call(call, f"{call.op} addresses elements by position")


@rule("searchsorted", "bucketize", "isin")
class Searched(Rule):
    """Each element looked up in a sorted sequence or a set, which stays whole."""

    def _names(self, call: Call) -> tuple[str, str]:
        return {
            "searchsorted": ("self", "sorted_sequence"),
            "bucketize": ("self", "boundaries"),
            "isin": ("elements", "test_elements"),
        }[call.op]

    def flow(self, call: Call, flow: Flow) -> None:
        element, table = (call.args[name] for name in self._names(call))
        one = not is_tensor(table) or call.op == "isin" or len(flow.axes(table)) == 1
        if not is_tensor(element) or not one or call.get("sorter") is not None:
            flow.freeze_call(call, f"{call.op} row by row")
            return
        if is_tensor(table):
            flow.freeze(flow.axes(table), call, "elements are searched in it")
        flow.set(call.node, flow.axes(element))

    def constants(self, call: Call, values: Values) -> None:
        element, table = (call.args[name] for name in self._names(call))
        known = values.known(table) if is_tensor(table) else torch.zeros(())
        many = call.op != "isin" and known is not None and known.dim() > 1
        if known is None or not is_tensor(element) or many or call.get("sorter") is not None:
            return
        for dim in range(len(values.map.of[call.node])):
            given = values.slices(element, dim)
            if given is not None:
                found = values.evaluate(call, {element: given.to(values.dtype(element)), table: known})
                values.set(call.node, dim, torch.where(given.isnan(), torch.nan, found.to(torch.float64)))


@rule("embedding_bag")
class EmbeddingBag(Rule):
    """Sums, means or maxima of rows of a weight ``[vocabulary, features]``; an empty bag gives zeros."""

    def flow(self, call: Call, flow: Flow) -> None:
        rows, features = flow.axes(call.args["weight"])
        flow.freeze(rows, call, "rows of an embedding are chosen by index")
        for name in ("indices", "offsets", "per_sample_weights"):
            if is_tensor(call.args[name]):
                flow.freeze(flow.axes(call.args[name]), call, "an index")
        results = []
        for info in call.node.meta["tensor"]:
            made = flow.fresh(info)
            if len(made) == 2 and made[1].size == features.size:
                made = (made[0], features)
            flow.freeze(made[:1], call, "bags")
            results.append(made)
        flow.set_several(call.node, results)

    def constants(self, call: Call, values: Values) -> None:
        values.set(call.node, 1, zeros(values.slices(call.args["weight"], 1)), 0)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.attributes(call, {}, embedding_dim=shrink.count(shrink.axes(call.args["weight"])[1]))


@rule("unfold")
class Unfold(Rule):
    """Windows along a dimension, which stays; their elements become the last dimension."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, made = flow.axes(call.args["self"]), flow.fresh(flow.info(call.node))
        dim = dim_of(call.args["dimension"], len(x))
        flow.freeze((x[dim], made[dim], made[-1]), call, "windows along it")
        flow.set(call.node, (*x[:dim], made[dim], *x[dim + 1 :], made[-1]))

    def constants(self, call: Call, values: Values) -> None:
        rank = len(values.map.of[call.node]) - 1
        for dim in range(rank):
            if dim != dim_of(call.args["dimension"], rank):
                values.set(call.node, dim, values.slices(call.args["self"], dim))


@rule("slice_scatter", "select_scatter")
class SliceScatter(Rule):
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

    def constants(self, call: Call, values: Values) -> None:
        axes = values.map.of[call.node]
        replaced = dim_of(call.args["dim"], len(axes))
        for dim, axis in enumerate(axes):
            theirs = dim - 1 if call.op == "select_scatter" and dim > replaced else dim
            if dim != replaced:
                old, new = values.slices(call.args["self"], dim), values.slices(call.args["src"], theirs)
                values.set(call.node, dim, _overwritten(old, new, axis.size))
