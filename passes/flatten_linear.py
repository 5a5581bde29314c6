"""Flatten linear layers: products of three dimensions and more become products of matrices.

    linear(x, w, b)  →  reshape(linear(reshape(x, [-1, in]), w, b), [-1, tokens, out])  x [batch, tokens, in]

Law: the module computes what it computed. onnxruntime has an integer kernel for the product of two matrices
with its int32 bias (QGemm). Of more dimensions it leaves the bias to a pass of its own over floats; a reshape
costs nothing. Edits in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import fx

from fxcompress.graph.calls import TensorInfo
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import operand_node
from fxcompress.graph.shapes import info


def flatten_linear(module: CompiledModule, layers: Iterable[fx.Node]) -> None:
    """Flatten those of ``layers``, calls of linear layers, whose result has one open dimension at most."""
    flat: dict[fx.Node, fx.Node] = {}
    for node in layers:
        x, made = operand_node(module, node, "input"), info(node)
        facts = None if x is None else info(x)
        if x is None or facts is None or made is None or len(made.shape) < 3:
            continue
        if sum(made.dynamic) > 1 or made.dynamic[-1] or facts.dynamic[-1]:
            continue
        if x not in flat:
            flat[x] = _reshape(x, _matrix(facts))
        node.replace_input_with(x, flat[x])
        readers = list(node.users)
        node.meta["tensor"] = _matrix(made)
        back = _reshape(node, made)
        for reader in readers:
            reader.replace_input_with(node, back)
    module.graph.lint()
    module.recompile()


def _reshape(x: fx.Node, to: TensorInfo) -> fx.Node:
    sizes = [-1 if is_open else size for size, is_open in zip(to.shape, to.dynamic, strict=True)]
    with x.graph.inserting_after(x):
        made = x.graph.call_function(torch.ops.aten.reshape.default, (x, sizes))
    made.meta["tensor"] = to
    return made


def _matrix(facts: TensorInfo) -> TensorInfo:
    """All dimensions but the last as one."""
    rows = math.prod(facts.shape[:-1])
    return replace(facts, shape=(rows, facts.shape[-1]), dynamic=(any(facts.dynamic), False))
