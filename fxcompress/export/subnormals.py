"""Probabilities too small for fast arithmetic get a floor.

Processors take tens of times as long for numbers below 1.2e-38, the subnormal ones. A mask of −100, as in the
shifted windows of a Swin Transformer, makes ``exp(−100)`` = 4e-44 of half of the attention, and the product
with the values 60 times as slow (onnxruntime 1.31, x86-64). Behind a softmax that gives such numbers on the
example inputs, ``clamp(min=1e-30)`` moves every probability by at most 1e-30, whatever the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.graph.inputs import Inputs, copied

_FLOOR = 1e-30
_SOFTMAX = (torch.ops.aten.softmax.int, torch.ops.aten._softmax.default)
_QUANTIZE = "quantize_per_tensor"


class _Watched(fx.Interpreter):
    """Runs a graph, and remembers which softmaxes gave subnormal numbers."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """One node."""
        result = super().run_node(n)
        if n.target in _SOFTMAX and isinstance(result, Tensor) and result.dtype == torch.float32:
            smallest = torch.finfo(torch.float32).tiny
            if ((result > 0) & (result < smallest)).any():
                self.found.add(n.name)
        return result


def floor_probabilities(exported: torch.export.ExportedProgram, inputs: Inputs) -> None:
    """Insert the floors in the graph of ``exported``; a quantizer rounds such numbers to zero by itself.

    Args:
        inputs: keyword inputs in the order of the program.
    """
    candidates = [
        node
        for node in exported.graph.nodes
        if node.target in _SOFTMAX and not any(_QUANTIZE in str(user.target) for user in node.users)
    ]
    if not candidates:
        return
    watched = _Watched(exported.module())
    watched.run(*pytree.tree_leaves(copied(inputs)))
    for node in candidates:
        if node.name not in watched.found:
            continue
        with exported.graph.inserting_after(node):
            floor = exported.graph.call_function(torch.ops.aten.clamp.default, (node, _FLOOR))
        floor.meta = dict(node.meta)
        for user in set(node.users) - {floor}:
            user.replace_input_with(node, floor)
