"""Scaled dot-product attention: ``softmax(q kᵀ · scale + mask) v`` (Vaswani et al. 2017).

``q [..., L, E]``, ``k [..., S, E]``, ``v [..., S, F]``, result ``[..., L, F]``. Features ``E`` are summed
over, so a feature that is zero in q or k may go from both; the scale keeps the value it had (``1/√E`` of the
original). Features ``F`` pass through. Heads are leading dimensions; with grouped queries the query heads
are ``key heads × group``. The softmax runs over all of ``S``.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fxcompress.graph.calls import Call
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need
from fxcompress.rules.flow import Flow, is_tensor
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


@rule("scaled_dot_product_attention")
class Attention(Rule):
    """``F.scaled_dot_product_attention``."""

    def flow(self, call: Call, flow: Flow) -> None:
        q, k, v = (flow.axes(call.args[name]) for name in ("query", "key", "value"))
        made = flow.fresh(flow.info(call.node))
        q[-1].merge(k[-1])
        k[-2].merge(v[-2])
        flow.freeze(k[-2], call, "attention runs over all positions")
        flow.contract(call, call.args["query"], len(q) - 1)
        flow.contract(call, call.args["key"], len(k) - 1)
        if call.args["is_causal"]:
            flow.freeze(q[-2], call, "causal attention goes by position")
        lead = [self._leading(call, flow, [q, k, v], back, made[back]) for back in range(-len(made), -2)]
        if is_tensor(call.args["attn_mask"]):
            self._mask(call, flow, lead, q[-2], k[-2])
        flow.map.batched += lead
        flow.set(call.node, (*lead, q[-2], v[-1]))

    def _leading(
        self, call: Call, flow: Flow, operands: list[tuple[Axis, ...]], back: int, made: Axis
    ) -> Axis:
        """A batch or head dimension: shared where sizes agree, ``key heads × group`` with grouped queries."""
        axes = [a[back] for a in operands if len(a) >= -back]
        full = [a for a in axes if a.size == made.size]
        for other in full[1:]:
            full[0].merge(other)
        for axis in axes:
            if axis.size not in (1, made.size):
                if not call.args["enable_gqa"] or made.size % axis.size:
                    raise ValueError(f"heads {axis.size} and {made.size} do not match")
                group = Axis(made.size // axis.size)
                flow.freeze(group, call, "queries that share a key head")
                flow.product(full[0], (axis, group))
        return full[0] if full else made

    def _mask(self, call: Call, flow: Flow, lead: list[Axis], rows: Axis, columns: Axis) -> None:
        mask = flow.axes(call.args["attn_mask"])
        for back, axis in enumerate(reversed(mask)):
            target = (columns, rows, *reversed(lead))[back]
            if axis.size == target.size:
                axis.merge(target)

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        """A feature is needed unless q or k is zero there."""
        zero = np.zeros(contraction.inner.size, dtype=np.bool_)
        for name in ("query", "key"):
            ref = contraction.call.args[name]
            found = values.zero(ref, len(values.map.of[values.canonical(ref)]) - 1)
            if found is not None:
                zero |= found.numpy()
        return Need(~zero, None)

    def constants(self, call: Call, values: Values) -> None:
        """Attention averages over positions: a constant feature of v stays; a zero head of v stays zero."""
        rank = len(values.map.of[call.node])
        source = call.args["value"]
        theirs = len(values.map.of[values.canonical(source)])
        values.set(call.node, rank - 1, values.slices(source, theirs - 1))
        for dim in range(theirs - 2):
            target = dim + rank - theirs
            zero = values.zero(source, dim)
            if zero is not None and len(zero) == values.map.of[call.node][target].size:
                values.set(call.node, target, torch.where(zero, 0.0, torch.nan).double())

    def shrink(self, call: Call, shrink: Shrink) -> None:
        features = shrink.axes(call.args["query"])[-1]
        if call.args["scale"] is None and not shrink.keeps_all(features):
            shrink.set_args(call, scale=1.0 / math.sqrt(features.size))
