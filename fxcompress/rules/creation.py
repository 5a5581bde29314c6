"""Tensors made inside the graph, and operators on sizes.

A filled tensor has axes of its own, which become whatever axes it is combined with; its literal sizes follow.
"""

from __future__ import annotations

from typing import Any

import torch

from fxcompress.graph.calls import Call, TensorInfo
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow, is_tensor
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
class Filled(Rule):
    """The same number everywhere, in a literal shape."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.set(call.node, flow.fresh(flow.info(call.node)))

    def constants(self, call: Call, values: Values) -> None:
        number = call.get("fill_value", 0.0 if call.op.endswith("zeros") else 1.0)
        if call.op.endswith("empty") or not isinstance(number, (int, float)):
            return
        axes = values.map.of[call.node]
        if not axes:
            values.set_known(call.node, torch.full((), number, dtype=values.dtype(call.node)))
        for dim, axis in enumerate(axes):
            if not axis.dynamic:
                values.set(call.node, dim, torch.full((axis.size,), float(number), dtype=torch.float64))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        if shrink.changed(call.node):
            sizes = zip(call.args["size"], shrink.axes(call.node), strict=True)
            shrink.set_args(call, size=[shrink.size(call.node, s, axis) for s, axis in sizes])


@rule("fill", "zero", "empty_like", "zeros_like", "ones_like", "full_like")
class Refilled(Rule):
    """The same number everywhere, in the shape of another tensor."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.set(call.node, flow.axes(call.args["self"]))

    def constants(self, call: Call, values: Values) -> None:
        if call.op == "empty_like":
            return
        value: Any = 1.0 if call.op == "ones_like" else call.get("value", call.get("fill_value", 0.0))
        number = values.whole(value) if is_tensor(value) else value
        for dim, axis in enumerate(values.map.of[call.node]):
            if number is not None and not axis.dynamic:
                values.set(call.node, dim, torch.full((axis.size,), float(number), dtype=torch.float64))


@rule(
    "arange", "linspace", "scalar_tensor", "eye", "tril_indices", "triu_indices",
    "rand", "randn", "randint", "randperm",
)  # fmt: skip
class Counted(Rule):
    """Values that depend on their position, or on the order in which they are drawn: every slice stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        axes = flow.fresh(flow.info(call.node))
        flow.freeze(axes, call, "values depend on their position")
        flow.set(call.node, axes)


@rule(
    "rand_like", "randn_like", "randint_like", "bernoulli", "exponential", "normal_functional", "uniform",
    "multinomial",
)  # fmt: skip
class Drawn(Rule):
    """Random values for each element in order: with a slice less, the others would be different ones."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.freeze_call(call, "random values are drawn in order")


@rule("one_hot")
class OneHot(Rule):
    """A new last dimension of classes, which stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        classes = flow.fresh(flow.info(call.node))[-1]
        flow.freeze(classes, call, "classes")
        flow.set(call.node, (*flow.axes(call.args["self"]), classes))


@rule("meshgrid")
class MeshGrid(Rule):
    """Each vector along a dimension of its own, repeated along those of the others."""

    def _order(self, call: Call) -> list[int]:
        """The vector along each dimension of the results."""
        order = list(range(len(call.args["tensors"])))
        return [1, 0, *order[2:]] if call.get("indexing") == "xy" and len(order) > 1 else order

    def flow(self, call: Call, flow: Flow) -> None:
        vectors = [flow.axes(ref) for ref in call.args["tensors"]]
        made = tuple(vectors[k][0] if vectors[k] else Axis(1) for k in self._order(call))
        flow.set_several(call.node, [made] * len(vectors))

    def constants(self, call: Call, values: Values) -> None:
        for dim, k in enumerate(self._order(call)):
            values.set(call.node, dim, values.slices(call.args["tensors"][k], 0), k)


@rule("sym_size", "item")
class Size(Rule):
    """Sizes of dimensions that follow the batch."""

    def flow(self, call: Call, flow: Flow) -> None:
        if isinstance(call.node.meta.get("tensor"), TensorInfo):
            flow.set(call.node, flow.fresh(flow.info(call.node)))
