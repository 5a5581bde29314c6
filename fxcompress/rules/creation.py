"""Tensors made inside the graph, and operators on sizes.

A filled tensor has axes of its own, which become whatever axes it is combined with; its literal sizes follow.
"""

from __future__ import annotations

import torch

from fxcompress.graph.calls import Call, TensorInfo
from fxcompress.rules.flow import Flow
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


@rule("arange", "linspace", "scalar_tensor", "eye", "tril_indices", "triu_indices")
class Counted(Rule):
    """Values that depend on their position: every slice stays."""

    def flow(self, call: Call, flow: Flow) -> None:
        axes = flow.fresh(flow.info(call.node))
        flow.freeze(axes, call, "values depend on their position")
        flow.set(call.node, axes)


@rule("sym_size", "item")
class Size(Rule):
    """Sizes of dimensions that follow the batch."""

    def flow(self, call: Call, flow: Flow) -> None:
        if isinstance(call.node.meta.get("tensor"), TensorInfo):
            flow.set(call.node, flow.fresh(flow.info(call.node)))
