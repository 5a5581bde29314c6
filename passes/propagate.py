"""Channel-level constant propagation (forward) and dead-channel elimination (backward).

Law: with the returned slices kept, every kept slice of every node has its original value, provided ``shrink``
adds what removed constant channels contributed.

Constancy: a masked filter's output is its bias, then what BatchNorm, activations and additions make of it.
Liveness: a slice is needed if a model output, an operator that must see the whole axis, or a non-zero weight
of a needed slice reads it. Both are classic analyses (Kildall 1973), here on slices of axes; liveness is the
least fixpoint of the relations of ``rules.axes`` above what is needed.
"""

from __future__ import annotations

import operator
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxcompress import ops
from fxcompress.graph.calls import Call, Ref
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.axes import analyze_axes
from fxcompress.rules import registry
from fxcompress.rules.axes import Axis, Bools, Contraction, Link, Product
from fxcompress.rules.contraction import Need
from fxcompress.rules.flow import Flow
from fxcompress.rules.values import Values


@dataclass(frozen=True)
class Analysis:
    """All analyses of one graph: what ``shrink`` works from."""

    flow: Flow
    values: Values
    kept: dict[int, Bools]

    @classmethod
    def of(cls, module: CompiledModule, round_to: int | None = None) -> Analysis:
        """Analyze ``module``."""
        flow = analyze_axes(module)
        values = propagate_constants(module, flow)
        return cls(flow, values, live_slices(flow, values, round_to=round_to))

    def count(self, axis: Axis) -> int:
        """How many slices of an axis are kept."""
        return int(self.kept[id(axis.find())].sum())


def propagate_constants(module: CompiledModule, flow: Flow) -> Values:
    """Walk the graph, as ``flow`` has seen it, once and record which tensors and slices are constant."""
    values = Values(module, flow.map, flow.canonical)
    for call in flow.calls:
        if not _evaluate(call, values):
            found = registry.rule_for(call)
            if found is not None and not _is_frozen_by_failure(flow, call):
                found.constants(call, values)
    return values


def _is_frozen_by_failure(flow: Flow, call: Call) -> bool:
    return str(call.node) in flow.map.unruled.get(call.op, ())


def _evaluate(call: Call, values: Values) -> bool:
    """Evaluate a call whose tensor operands are all known; returns whether it was."""
    target = call.target
    if isinstance(target, torch._ops.OpOverload):
        if torch.Tag.nondeterministic_seeded in target.tags:
            return False
    elif target not in ops.RESTRICTED.values():
        return False
    operands: dict[Ref, Tensor] = {}
    for _, ref in call.refs():
        value = values.known(ref)
        if value is None:
            return False
        operands[ref] = value
    result = values.evaluate(call, operands)
    if isinstance(result, Tensor):
        values.set_known(call.node, result)
        return True
    for user in call.node.users:
        if user.target is operator.getitem and isinstance(result, (list, tuple)):
            values.set_known(user, result[user.args[1]])  # type: ignore[index]
    return False


def live_slices(flow: Flow, values: Values, *, round_to: int | None = None) -> dict[int, Bools]:
    """Which slices of each axis must stay: ``id(root axis) → bool[size]``. Every axis keeps at least one.

    ``round_to``: axes that lose slices keep a multiple of this many where that is possible.
    """
    return _Liveness(flow, values).solve(round_to)


def structural_slices(flow: Flow) -> dict[int, Bools]:
    """Which slices stay whatever the weights are: those operators need whole, and all that is tied to
    them.
    """
    return _Liveness(flow, None).seed()


class _Liveness:
    def __init__(self, flow: Flow, values: Values | None) -> None:
        self._axes = flow.map.roots()
        self.kept: dict[int, Bools] = {id(a): np.zeros(a.size, dtype=np.bool_) for a in self._axes}
        self._watch: dict[int, list[Link | Product | tuple[Contraction, Need]]] = defaultdict(list)
        self._queue: deque[int] = deque()
        self._queued: set[int] = set()
        for relation in flow.map.relations:
            members = (
                (relation.whole, *relation.factors)
                if isinstance(relation, Product)
                else (relation.a, relation.b)
            )
            for axis in members:
                self._watch[id(axis.find())].append(relation)
        if values is not None:
            self._contract(flow.map.contractions, values)

    def _contract(self, contractions: Iterable[Contraction], values: Values) -> None:
        for contraction in contractions:
            rule = registry.rule_for(contraction.call)
            need = None if rule is None else rule.need(contraction, values)
            if need is None:
                need = Need(np.ones(contraction.inner.size, dtype=np.bool_), None)
            if contraction.outer is None:
                self._add(contraction.inner, need.of(None))
            else:
                self._watch[id(contraction.outer.find())].append((contraction, need))

    def seed(self) -> dict[int, Bools]:
        """Keep what is frozen or needed, and what is tied to it."""
        for axis in self._axes:
            if axis.frozen is not None:
                self._add(axis, np.ones(axis.size, dtype=np.bool_))
            for slices in axis.needed:
                chosen = np.zeros(axis.size, dtype=np.bool_)
                chosen[slices] = True
                self._add(axis, chosen)
        self._close()
        return self.kept

    def solve(self, round_to: int | None) -> dict[int, Bools]:
        """Keep what is needed, and at least one slice of every axis.

        Axes are visited against the data flow: what a slice kept for this reason reads is kept first, so that
        axes further up do not keep another one besides.
        """
        self.seed()
        for axis in reversed(self._axes):
            if axis.size and not self.kept[id(axis)].any():
                first = np.zeros(axis.size, dtype=np.bool_)
                first[0] = True
                self._add(axis, first)
                self._close()
        if round_to:
            self._round(round_to)
        return self.kept

    def _round(self, multiple: int) -> None:
        for axis in self._axes:
            kept = self.kept[id(axis)]
            missing = min(-int(kept.sum()) % multiple, int((~kept).sum()))
            if missing:
                more = kept.copy()
                more[np.flatnonzero(~kept)[:missing]] = True
                self._add(axis, more)
                self._close()

    def _add(self, axis: Axis, slices: Bools) -> None:
        root = axis.find()
        kept = self.kept.setdefault(id(root), np.zeros(root.size, dtype=np.bool_))
        if (slices & ~kept).any():
            kept |= slices
            if id(root) not in self._queued:
                self._queued.add(id(root))
                self._queue.append(id(root))

    def _close(self) -> None:
        while self._queue:
            key = self._queue.popleft()
            self._queued.discard(key)
            for relation in self._watch[key]:
                self._apply(relation)

    def _apply(self, relation: Link | Product | tuple[Contraction, Need]) -> None:
        if isinstance(relation, Link):
            self._apply_link(relation)
        elif isinstance(relation, Product):
            self._apply_product(relation)
        else:
            contraction, need = relation
            if contraction.outer is not None:
                self._add(contraction.inner, need.of(self.kept[id(contraction.outer.find())]))

    def _apply_link(self, link: Link) -> None:
        a, b = self.kept[id(link.a.find())], self.kept[id(link.b.find())]
        linked = a[link.ia] | b[link.ib]
        for axis, index, kept in ((link.a, link.ia, a), (link.b, link.ib, b)):
            more = kept.copy()
            more[index[linked]] = True
            self._add(axis, more)

    def _apply_product(self, product: Product) -> None:
        whole = self.kept[id(product.whole.find())].reshape([f.size for f in product.factors])
        table: Bools = np.ones((), dtype=np.bool_)
        for i, factor in enumerate(product.factors):
            others = tuple(k for k in range(len(product.factors)) if k != i)
            self._add(factor, np.asarray(whole.any(axis=others)))
            table = np.logical_and.outer(table, self.kept[id(factor.find())])
        self._add(product.whole, table.reshape(-1))
