"""Tensors made inside the graph, and operators on sizes.

A filled tensor has axes of its own, which become whatever axes it is combined with; its literal sizes follow.
"""

from __future__ import annotations

from fxcompress.graph.calls import Call, TensorInfo
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
class Filled(Rule):
    """The same number everywhere, in a literal shape."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.set(call.node, flow.fresh(flow.info(call.node)))

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


@rule("sym_size", "mul_sizes", "sym_numel", "item")
class Size(Rule):
    """Sizes of dimensions that follow the batch."""

    def flow(self, call: Call, flow: Flow) -> None:
        if isinstance(call.node.meta.get("tensor"), TensorInfo):
            flow.set(call.node, flow.fresh(flow.info(call.node)))
