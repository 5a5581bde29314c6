"""Round biases in training as integer kernels add them, where that makes the simulation exact.

    conv(fq_x(x), fq_w(w), b)    →    conv(fq_x(x), fq_w(w), round(b / (s_x · s_w)) · s_x · s_w)

Law: what ``convert`` does to a bias is done already, and changes nothing more. Only where both scales are
powers of two: products and sums of floats are then those of the integers, as long as a sum stays below
``2^24 · s_x · s_w``, so that the module computes what runs in integers bit for bit. At other scales sums of
floats are rounded anyway, by more than a bias is. ``b``, ``s_w``: ``[out]``; ``s_x``: one number. In place.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

from fxcompress import ops
from fxcompress.graph.calls import Call, call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import operand_node, set_operand
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.passes.insert_fake_quant import CONTAINER, rounded_by


def round_biases(module: CompiledModule, nodes: Collection[fx.Node]) -> None:
    """Round the biases of those of ``nodes`` that are integer layers with scales of powers of two."""
    for node in nodes:
        call = call_of(node)
        if call is None or not (call.op == "linear" or call.op.startswith("conv")):
            continue
        owners = [rounded_by(call.get(name)) for name in ("weight", "input")]
        found = [None if owner is None else module.get_submodule(f"{CONTAINER}.{owner}") for owner in owners]
        bias = operand_node(module, node, "bias") if _fit(call, *found) else None
        if bias is None or bias.target is ops.round_bias:
            continue
        with module.graph.inserting_before(node):
            read = [module.graph.create_node("get_attr", f"{CONTAINER}.{owner}", (), {}) for owner in owners]
            rounded = module.graph.call_function(ops.round_bias, (bias, *read))
        rounded.meta["tensor"] = bias.meta["tensor"]
        set_operand(module, node, "bias", rounded)
    module.graph.lint()
    module.recompile()


def _fit(call: Call, weight: nn.Module | None, given: nn.Module | None) -> bool:
    """Whether the product of both scales is a power of two for each output channel."""
    if not (isinstance(weight, FakeQuantize) and isinstance(given, FakeQuantize)):
        return False
    if call.op.startswith("conv_transpose") and call.args["groups"] > 1:
        return False  # scales are of the channels of a group
    return weight.grid.power_of_two and given.grid.power_of_two and given.grid.axis is None
