"""Decompose scaled dot-product attention into the products that have integer kernels.

    attention(q, k, v)  →  softmax(q kᵀ · scale + mask) v                        (Vaswani et al. 2017)

``q [..., L, E]``, ``k [..., S, E]``, ``v [..., S, F]``; ``scale`` is ``1/√E`` unless given. A boolean mask
leaves −∞ where it is false, a causal one above the diagonal; a row of nothing but −∞ gives zeros. Law: an
identity (but for the rounding of floats). In place, for the given calls only; those with dropout, or causal
ones whose lengths are open, stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.calls import Call, TensorInfo, call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import add_buffer, operand_node
from fxcompress.graph.shapes import element_info

aten = torch.ops.aten
OPERATOR = "scaled_dot_product_attention"


def decompose_attention(module: CompiledModule, calls: Collection[str]) -> dict[str, tuple[str, str]]:
    """Decompose the attentions among the nodes named ``calls``.

    Returns:
        Name of the call → names of the two products that stand for it, ``q kᵀ`` and that with ``v``.
    """
    products: dict[str, tuple[str, str]] = {}
    for node in [node for node in module.graph.nodes if node.name in calls]:
        call = call_of(node)
        if call is not None and call.op == OPERATOR and _can(call):
            products[node.name] = _Attention(module, call).decompose()
    if products:
        module.graph.lint()
        module.recompile()
    return products


def _can(call: Call) -> bool:
    sizes = [element_info(call.args[name]) for name in ("query", "key")]
    closed = all(info is not None and not info.dynamic[-2] for info in sizes)
    return not call.args["dropout_p"] and (closed or not call.args["is_causal"])


class _Attention:
    """The new nodes in front of one call."""

    def __init__(self, module: CompiledModule, call: Call) -> None:
        self._module, self._call = module, call
        self._query, self._key, self._value = (self._operand(name) for name in ("query", "key", "value"))

    def decompose(self) -> tuple[str, str]:
        args, node = self._call.args, self._call.node
        self._repeat_groups()
        q, k = self._query.meta["tensor"], self._key.meta["tensor"]
        turned = _sized(k, {-1: (k, -2), -2: (k, -1)})
        square = _sized(node.meta["tensor"], {-2: (q, -2), -1: (k, -2)})
        scale = 1 / math.sqrt(q.shape[-1]) if args["scale"] is None else args["scale"]
        key = self._add(aten.transpose.int, (self._key, -2, -1), turned)
        scores = self._add(aten.matmul.default, (self._query, key), square, f"{node.name}_scores")
        scaled = self._add(aten.mul.Tensor, (scores, scale), square)
        masked = self._masked(scaled)
        softmax = aten.softmax.int if masked is scaled else aten._safe_softmax.default
        weights = self._add(softmax, (masked, -1), square)
        result = self._add(
            aten.matmul.default, (weights, self._value), node.meta["tensor"], f"{node.name}_values"
        )
        node.replace_all_uses_with(result)
        self._module.graph.erase_node(node)
        return scores.name, result.name

    def _operand(self, name: str) -> fx.Node:
        node = operand_node(self._module, self._call.node, name)
        if node is None:
            raise TypeError(f"{self._call.node}: {name} is no tensor")
        return node

    def _repeat_groups(self) -> None:
        """With grouped queries, keys and values once for every query of their group."""
        heads: TensorInfo = self._query.meta["tensor"]
        key: TensorInfo = self._key.meta["tensor"]
        if not self._call.args["enable_gqa"] or heads.shape[-3] == key.shape[-3]:
            return
        times = heads.shape[-3] // key.shape[-3]
        self._key, self._value = (
            self._add(
                aten.repeat_interleave.self_int, (x, times, -3), _sized(x.meta["tensor"], {-3: (heads, -3)})
            )
            for x in (self._key, self._value)
        )

    def _masked(self, scores: fx.Node) -> fx.Node:
        info: TensorInfo = scores.meta["tensor"]
        if self._call.args["is_causal"]:
            mask = self._constant("causal", torch.ones(info.shape[-2:], dtype=torch.bool).tril())
        elif self._call.args["attn_mask"] is None:
            return scores
        else:
            mask = self._operand("attn_mask")
        if mask.meta["tensor"].dtype != torch.bool:
            return self._add(aten.add.Tensor, (scores, mask), info)
        lowest = self._constant("lowest", torch.tensor(-math.inf, dtype=info.dtype))
        return self._add(aten.where.self, (mask, scores, lowest), info)

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        return add_buffer(self._module, f"{self._call.node.name}_{name}", value, self._call.node)

    def _add(self, target: Any, args: tuple[Any, ...], info: TensorInfo, name: str | None = None) -> fx.Node:
        graph = self._module.graph
        with graph.inserting_before(self._call.node):
            node = graph.create_node("call_function", target, args, name=name)
        node.meta["tensor"] = info
        return node


def _sized(info: TensorInfo, others: dict[int, tuple[TensorInfo, int]]) -> TensorInfo:
    """``info`` with some dimensions of other tensors."""
    shape, dynamic = list(info.shape), list(info.dynamic)
    for dim, (other, its) in others.items():
        shape[dim], dynamic[dim] = other.shape[its], other.dynamic[its]
    return TensorInfo(tuple(shape), info.dtype, tuple(dynamic))
