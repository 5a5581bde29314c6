"""Axis analysis: give every tensor of the graph its axes and state how they depend on each other.

Law: the result is a set of relations such that removing slices in accordance with all of them leaves every
node equal to the kept block of its original value. Changes nothing. Shapes are those of
``node.meta["tensor"]``.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.graph.calls import Call, call_of, unwrap
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.shapes import info
from fxcompress.rules import registry
from fxcompress.rules.axes import Obstacle
from fxcompress.rules.flow import Flow, is_tensor


def analyze_axes(module: CompiledModule, *, restrict: bool = False) -> Flow:
    """Walk the graph once. ``restrict``:
    treat normalizations over channels as prunable (see ``insert_masks``).
    """
    flow = Flow(module, restrict=restrict)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            facts = info(node)
            if facts is not None:
                axes = flow.fresh(facts)
                for axis in axes:
                    axis.frozen = Obstacle(str(node), "model input")
                flow.map.of[node] = axes
        elif node.op == "output":
            _freeze_outputs(flow, node)
        else:
            call = call_of(node)
            if call is not None:
                flow.calls.append(call)
                _flow(flow, call)
    return flow


def _freeze_outputs(flow: Flow, node: fx.Node) -> None:
    leaves: list[Any] = [unwrap(value) for value in pytree.tree_leaves(node.args)]
    flow.count_reads(ref for ref in leaves if is_tensor(ref))
    for value, ref in zip(pytree.tree_leaves(node.args), leaves, strict=True):
        if is_tensor(ref):
            for axis in flow.axes(ref):
                root = axis.find()
                root.frozen = root.frozen or Obstacle(str(value), "model output")


def _flow(flow: Flow, call: Call) -> None:
    operands = [ref for _, ref in call.refs()]
    if "masked_parameter" not in call.node.meta:  # a mask product stands for its parameter: its readers count
        flow.count_reads(operands)
    if operands and all(isinstance(ref, str) or ref in flow.computed for ref in operands):
        flow.computed[call.node] = operands
    found = registry.rule_for(call)
    if found is None:
        if any(is_tensor(ref) for _, ref in call.refs()) or is_tensor(call.node):
            flow.map.unruled.setdefault(call.op, []).append(str(call.node))
            flow.freeze_call(call, f"no rule for operator {call.op!r}")
        return
    try:
        found.flow(call, flow)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        # A call the rule did not foresee: nothing is removed around it, and the report says so.
        flow.map.unruled.setdefault(call.op, []).append(str(call.node))
        flow.map.of.pop(call.node, None)
        flow.freeze_call(call, f"the rule for {call.op!r} does not cover this call ({error})")
