"""Decompose gated activations into the operators that have integer kernels.

    silu(x)  →  x · sigmoid(x);      hardswish(x)  →  x · hardsigmoid(x)

Law: an identity (but for the rounding of floats). In place, for those behind the given nodes only; modules
become functions.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from fxcompress.graph.calls import call_of, operand
from fxcompress.graph.module import CompiledModule

aten = torch.ops.aten
GATES = {"silu": aten.sigmoid.default, "hardswish": aten.hardsigmoid.default}
"""By operator the gate that its operand is multiplied with."""


def decompose_activations(module: CompiledModule, behind: Collection[fx.Node]) -> None:
    """Decompose every ``silu`` and ``hardswish`` that reads one of the nodes ``behind``."""
    changed = False
    for node in list(module.graph.nodes):
        call = call_of(node)
        gate = None if call is None else GATES.get(call.op.rstrip("_"))
        if call is None or gate is None or operand(call) not in behind:
            continue
        x = operand(call)
        with module.graph.inserting_before(node):
            opened = module.graph.call_function(gate, (x,))
            product = module.graph.call_function(aten.mul.Tensor, (x, opened))
        opened.meta["tensor"] = product.meta["tensor"] = node.meta["tensor"]
        node.replace_all_uses_with(product)
        module.graph.erase_node(node)
        changed = True
    if changed:
        module.graph.lint()
        module.recompile()
