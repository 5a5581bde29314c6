"""Linear layers, matrix products, einsum and embeddings.

``linear``: ``y[…, o] = b[o] + Σ_i w[o, i] · x[…, i]``; see ``fxcompress.rules.contraction``.
Products of two activations sum over an axis both share: a slice that is zero on either side may go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Ref, Reference
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, Weighted, WeightedRule, editable
from fxcompress.rules.flow import Flow, is_tensor
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


@rule("linear")
class Linear(WeightedRule):
    """``torch.nn.Linear`` and ``F.linear``; the weight is ``[out, in]``."""

    reads, makes = 1, 0
    """The dimensions of the weight that read and make features."""
    input = "input"

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args[self.input])
        weight = flow.axes(call.args[self.weight])
        flow.reads(call.args[self.weight], self.reads)
        x[-1].merge(weight[self.reads])
        outer = weight[self.makes]
        if is_tensor(call.args[self.bias]):
            outer.merge(flow.axes(call.args[self.bias])[0])
        flow.contract(call, call.args[self.input], len(x) - 1, outer)
        flow.set(call.node, (*x[:-1], outer))

    def _weighted(self, call: Call, values: Values) -> Weighted | None:
        return values.once(call.node, lambda: self._make_weighted(call, values))

    def _make_weighted(self, call: Call, values: Values) -> Weighted | None:
        weight = values.known(call.args[self.weight])
        if weight is None:
            return None
        constants = values.slices(call.args[self.input], len(values.map.of[call.node]) - 1)
        may_change = editable(values, call.args[self.weight], call.args[self.bias])
        return Weighted(self.canonical(call, weight), constants, True, may_change)

    def canonical(self, call: Call, weight: Tensor) -> Tensor:
        return (weight if self.makes == 0 else weight.t())[None, :, :, None]

    def original(self, call: Call, canonical: Tensor, shape: torch.Size) -> Tensor:
        rows = canonical[0, :, :, 0]
        return rows if self.makes == 0 else rows.t()

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        weighted = self._weighted(contraction.call, values)
        return None if weighted is None else weighted.need

    def constants(self, call: Call, values: Values) -> None:
        weighted, bias = self._weighted(call, values), values.known(call.args[self.bias])
        if weighted is not None and (bias is not None or call.args[self.bias] is None):
            values.set(call.node, len(values.map.of[call.node]) - 1, weighted.outputs(bias))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        inside, outside = shrink.axes(call.args[self.input])[-1], shrink.axes(call.node)[-1]
        shrink.attributes(call, {}, in_features=shrink.count(inside), out_features=shrink.count(outside))
        weighted = self._weighted(call, shrink.values)
        if weighted is not None and not shrink.keeps_all(inside):
            removed = ~torch.from_numpy(shrink.kept(inside))
            shrink.add_to_bias(call, weighted.folded(removed), bias=self.bias, weight=self.weight)


@rule("addmm")
class AddMM(Linear):
    """``b + x w`` with the weight ``[in, out]``, as in layers that keep it transposed."""

    reads, makes = 0, 1
    input, weight, bias = "mat1", "mat2", "self"

    def flow(self, call: Call, flow: Flow) -> None:
        plain = call.args["beta"] == call.args["alpha"] == 1
        bias = flow.info(call.args["self"])
        if not plain or len(bias.shape) != 1:
            flow.freeze_call(call, "addmm with factors or a full matrix to add")
            return
        super().flow(call, flow)


class _Summed(Rule):
    """Operators that are an einsum: each label is an axis, labels missing from the result are summed."""

    def equation(self, call: Call, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
        """Labels of the operands and of the result."""
        raise NotImplementedError(type(self).__name__)

    def operands(self, call: Call) -> list[Ref]:
        return [call.args["self"], call.args["mat2" if "mat2" in call.args else "other"]]

    def flow(self, call: Call, flow: Flow) -> None:
        operands = self.operands(call)
        ranks = [len(flow.axes(r)) for r in operands]
        labels, result = self.equation(call, ranks)
        by_label: dict[str, Axis] = {}
        for ref, names in zip(operands, labels, strict=True):
            for dim, name in enumerate(names):
                if name not in result:
                    flow.reads(ref, dim)
        for ref, names in zip(operands, labels, strict=True):
            for name, axis in zip(names, flow.axes(ref), strict=True):
                known = by_label.get(name)
                if known is None or (known.size == 1 and axis.size != 1):
                    by_label[name] = axis
                elif axis.size == known.size:
                    axis.merge(known)
        for ref, names in zip(operands, labels, strict=True):
            for dim, name in enumerate(names):
                if name not in result:
                    flow.contract(call, ref, dim)
        made = flow.fresh(flow.info(call.node))
        flow.set(call.node, [by_label.get(n, m) for n, m in zip(result, made, strict=True)])
        if not any(isinstance(flow.behind_mask(ref), Reference) for ref in operands):
            everywhere = set(result).intersection(*labels)
            flow.map.batched += [by_label[name] for name in result if name in everywhere]

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        """A summed slice is needed unless one operand is zero there."""
        call = contraction.call
        operands = self.operands(call)
        labels, _ = self.equation(call, [len(values.map.of[self._key(values, r)]) for r in operands])
        name = next(labels[i][contraction.dim] for i, ref in enumerate(operands) if ref == contraction.source)
        zero = np.zeros(contraction.inner.size, dtype=np.bool_)
        for ref, names in zip(operands, labels, strict=True):
            if name in names:
                found = values.zero(ref, names.index(name))
                if found is not None and len(found) == len(zero):
                    zero |= found.numpy()
        return Need(~zero, None)

    def _key(self, values: Values, ref: Ref) -> Ref:
        return ref if ref in values.map.of else values.canonical(ref)

    def constants(self, call: Call, values: Values) -> None:
        """A slice of the result is zero where a slice of an operand is."""
        operands = self.operands(call)
        labels, result = self.equation(call, [len(values.map.of[self._key(values, r)]) for r in operands])
        for dim, name in enumerate(result):
            size = values.map.of[call.node][dim].size
            zero = torch.zeros(size, dtype=torch.bool)
            for ref, names in zip(operands, labels, strict=True):
                found: Tensor | None = values.zero(ref, names.index(name)) if name in names else None
                if found is not None and len(found) == size:
                    zero |= found
            values.set(call.node, dim, torch.where(zero, 0.0, torch.nan).double())


@rule("matmul", "mm", "bmm")
class MatMul(_Summed):
    """``torch.matmul`` with broadcasting of leading dimensions."""

    def equation(self, call: Call, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
        batch = [f"batch{i}" for i in range(max(*ranks, 2) - 2)]
        labels = []
        for rank, pair in zip(ranks, (["m", "k"], ["k", "n"]), strict=True):
            lead = max(rank - 2, 0)
            labels.append([*batch[len(batch) - lead :], *(pair if rank > 1 else ["k"])])
        rows = ["m"] if ranks[0] > 1 else []
        columns = ["n"] if ranks[1] > 1 else []
        return labels, [*batch, *rows, *columns]


@rule("einsum")
class Einsum(_Summed):
    """``torch.einsum`` without repeated labels in one operand."""

    def operands(self, call: Call) -> list[Ref]:
        return list(call.args["tensors"])

    def equation(self, call: Call, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
        left, arrow, right = call.args["equation"].replace(" ", "").partition("->")
        terms = left.split(",")
        if not arrow:
            letters = left.replace(",", "").replace("...", "")
            once = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
            right = ("..." if "..." in left else "") + once
        extra = max((r - len(t.replace("...", "")) for r, t in zip(ranks, terms, strict=True)), default=0)
        spelled = [
            self._spell(t, r - len(t.replace("...", "")), extra) for t, r in zip(terms, ranks, strict=True)
        ]
        return spelled, self._spell(right, extra, extra)

    def _spell(self, term: str, count: int, extra: int) -> list[str]:
        before, dots, after = term.partition("...")
        middle = [f"...{i}" for i in range(extra - count, extra)] if dots else []
        return [*before, *middle, *after]

    def flow(self, call: Call, flow: Flow) -> None:
        labels, result = self.equation(call, [len(flow.axes(r)) for r in self.operands(call)])
        if any(len(set(names)) != len(names) for names in [*labels, result]):
            flow.freeze_call(call, "einsum with a repeated label")
            return
        super().flow(call, flow)

    def constants(self, call: Call, values: Values) -> None:
        ranks = [len(values.map.of[self._key(values, r)]) for r in self.operands(call)]
        labels, result = self.equation(call, ranks)
        if all(len(set(names)) == len(names) for names in [*labels, result]):
            super().constants(call, values)


@rule("embedding")
class Embedding(Rule):
    """``weight[indices]``; the weight is ``[vocabulary, features]``."""

    def flow(self, call: Call, flow: Flow) -> None:
        weight = flow.axes(call.args["weight"])
        flow.freeze(weight[0], call, "rows of an embedding are chosen by index")
        indices = flow.axes(call.args["indices"])
        flow.set(call.node, (*indices, weight[1]))

    def constants(self, call: Call, values: Values) -> None:
        weight: Any = call.args["weight"]
        values.set(call.node, len(values.map.of[call.node]) - 1, values.slices(weight, 1))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.attributes(call, {}, embedding_dim=shrink.count(shrink.axes(call.node)[-1]))
