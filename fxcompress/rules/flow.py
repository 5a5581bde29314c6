"""``Flow``: what rules use to state how axes depend on each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxcompress.graph.calls import Call, Ref, Reference, TensorInfo, operand
from fxcompress.graph.module import get_tensor
from fxcompress.graph.shapes import element_info
from fxcompress.rules.axes import Axis, AxisMap, Contraction, Ints, Link, Obstacle, Product


class Flow:
    """Builds an ``AxisMap`` call by call."""

    def __init__(self, root: nn.Module, *, restrict: bool = False) -> None:
        """``restrict``: normalizations over an axis do not freeze it,
        as their statistics will be restricted.
        """
        self.root = root
        self.map = AxisMap()
        self.restrict = restrict
        self._by_tensor: dict[int, Reference] = {}
        self._canonical: dict[str, Reference] = {}
        self._remembered: dict[fx.Node, Axis] = {}
        self._summed: set[tuple[fx.Node, Ref, int]] = set()
        self.calls: list[Call] = []
        """The calls of the graph, in order."""
        self.computed: dict[Ref, list[Ref]] = {}
        """Tensors computed from parameters and buffers alone, and their operands."""

    # -- reading -------------------------------------------------------------------------------------------
    def canonical(self, ref: Ref) -> Ref:
        """Tied parameters are one tensor: the first name seen stands for all."""
        if isinstance(ref, fx.Node):
            return ref
        if ref not in self._canonical:
            tensor = get_tensor(self.root, ref)
            self._canonical[ref] = self._by_tensor.setdefault(id(tensor), Reference(ref))
        return self._canonical[ref]

    def info(self, ref: Ref) -> TensorInfo:
        """Shape and dtype of a tensor."""
        if isinstance(ref, fx.Node):
            found = element_info(ref)
            if found is None:
                raise TypeError(f"{ref} yields no single tensor")
            return found
        tensor = get_tensor(self.root, ref)
        return TensorInfo(tuple(tensor.shape), tensor.dtype, (False,) * tensor.dim())

    def axes(self, ref: Ref) -> tuple[Axis, ...]:
        """The axes of a tensor; those of a parameter are made at first sight."""
        ref = self.canonical(ref)
        if ref not in self.map.of:
            self.map.of[ref] = self.fresh(self.info(ref))
        return self.map.of[ref]

    def count_reads(self, refs: Iterable[Ref]) -> None:
        """Count one reader of each parameter among ``refs``, to know which are shared between calls."""
        names = {self.canonical(self.behind_mask(ref)) for ref in refs}
        for name in names:
            if isinstance(name, str):
                self.map.uses[name] = self.map.uses.get(name, 0) + 1

    def behind_mask(self, ref: Ref) -> Ref:
        """The parameter that a mask product stands for; anything else as it is."""
        masked = isinstance(ref, fx.Node) and "masked_parameter" in ref.meta
        return Reference(ref.meta["masked_parameter"]) if masked else ref  # type: ignore[union-attr]

    # -- stating -------------------------------------------------------------------------------------------
    def fresh(self, info: TensorInfo) -> tuple[Axis, ...]:
        """New axes for a tensor; dimensions that follow the batch are frozen."""
        axes = tuple(Axis(s, d) for s, d in zip(info.shape, info.dynamic, strict=True))
        for axis in axes:
            if axis.dynamic:
                axis.frozen = Obstacle("", "follows the batch")
        return axes

    def set(self, node: fx.Node, axes: Sequence[Axis]) -> None:
        """Give ``node`` its axes."""
        expected = self.info(node).shape
        got = tuple(a.size for a in axes)
        if expected != got:
            raise ValueError(f"{node}: the rule gives shape {got}, the graph has {expected}")
        self.map.of[node] = tuple(axes)

    def set_several(self, node: fx.Node, axes: Sequence[tuple[Axis, ...] | None]) -> None:
        """Give an operator with several results their axes (``getitem`` picks them up)."""
        self.map.several[node] = tuple(axes)

    def link(self, a: Axis, ia: Ints | range, b: Axis, ib: Ints | range) -> None:
        """``a[ia[k]]`` stands or falls with ``b[ib[k]]``."""
        self.map.relations.append(Link(a, _ints(ia), b, _ints(ib)))

    def product(self, whole: Axis, factors: Sequence[Axis]) -> None:
        """``whole`` enumerates ``factors`` in row-major order; factors of size 1 do not count."""
        real = tuple(f for f in factors if f.size != 1)
        if int(np.prod([f.size for f in real])) != whole.size:
            raise ValueError(f"factors {[f.size for f in real]} do not make {whole.size}")
        if len(real) == 1:
            whole.merge(real[0])
        elif real:
            self.map.relations.append(Product(whole, real))

    def contract(self, call: Call, source: Ref, dim: int, outer: Axis | None = None) -> None:
        """``call`` sums over dimension ``dim`` of ``source`` into ``outer``."""
        inner = self.axes(source)[dim]
        self._summed.add((call.node, self.canonical(source), dim))
        self.map.contractions.append(Contraction(call, source, dim, inner, outer))

    def reads(self, parameter: Any, dim: int) -> None:
        """Dimension ``dim`` of ``parameter`` reads channels (an input dimension of a weight).

        Of a weight computed from parameters it holds for the dimensions of these that pass through (not for
        those a norm sums over): say it before the dimension is merged with that of the input.
        """
        ref = self.canonical(self.behind_mask(parameter))
        if isinstance(ref, str):
            self.map.read_dims.add((ref, dim))
        elif ref in self.computed:
            axis = self.axes(ref)[dim].find()
            for operand_ in self._sources(ref):
                for d, a in enumerate(self.axes(operand_)):
                    if a.find() is axis and axis.size > 1 and (ref, operand_, d) not in self._summed:
                        self.reads(operand_, d)

    def _sources(self, ref: Ref) -> Iterator[Ref]:
        """The operands of a computed tensor; of one of several results those of the operator."""
        for source in map(self.canonical, self.computed[ref]):
            yield from (self._sources(source) if source in self.map.several else (source,))

    def parameters_of(self, ref: Ref) -> list[Reference]:
        """The parameters a tensor is computed from, if it is from parameters alone."""
        if isinstance(ref, Reference):
            return [Reference(self.canonical(ref))]
        return [p for source in self.computed.get(ref, ()) for p in self.parameters_of(source)]

    def freeze(self, axes: Axis | Sequence[Axis], call: Call, reason: str) -> None:
        """All slices of these axes stay."""
        for axis in (axes,) if isinstance(axes, Axis) else axes:
            root = axis.find()
            root.frozen = root.frozen or Obstacle(str(call.node), reason)

    def need(self, axis: Axis, slices: Sequence[int] | Ints) -> None:
        """These slices stay."""
        axis.find().needed.append(_ints(slices))

    def statistics(self, call: Call, dims: Sequence[int], reason: str, frozen: Axis | None = None) -> None:
        """``call`` takes statistics over ``dims`` of its input: these stay whole (or ``frozen`` does in their
        place), unless the statistics are, or will be, restricted to what is kept."""
        x = self.axes(operand(call))
        mask = call.get("mask")
        if mask is not None:
            value = get_tensor(self.root, mask)
            if self.restrict:
                self.map.restricted[call.node] = tuple(dims)
            for offset, (dim, axis) in enumerate(zip(dims, self.axes(mask), strict=True)):
                if axis.size == x[dim].size:
                    x[dim].merge(axis)
                    if self.restrict:
                        continue
                    rows = value.movedim(offset, 0).reshape(value.shape[offset], -1)
                    self.need(x[dim], (rows != 0).any(1).nonzero().flatten().numpy())
                elif not self.restrict:
                    self.freeze(x[dim], call, reason)
        elif self.restrict:
            self.map.restricted[call.node] = tuple(dims)
        else:
            self.freeze([x[d] for d in dims] if frozen is None else frozen, call, reason)

    def remember(self, node: fx.Node, axis: Axis) -> None:
        """Keep an axis that no tensor has (the groups of a norm) for ``shrink``."""
        self._remembered[node] = axis

    def recall(self, node: fx.Node) -> Axis:
        """The axis remembered for ``node``."""
        return self._remembered[node]

    def known(self, ref: Any) -> torch.Tensor | None:
        """The value of a parameter or buffer operand."""
        return get_tensor(self.root, ref).detach() if isinstance(ref, Reference) else None

    def freeze_call(self, call: Call, reason: str) -> None:
        """Freeze every axis around a call, its results included."""
        for _, ref in call.refs():
            if isinstance(ref, str) or element_info(ref) is not None:
                self.freeze(self.axes(ref), call, reason)
            for axes in self.map.several.get(ref, ()) if isinstance(ref, fx.Node) else ():
                self.freeze(axes or (), call, reason)
        value = call.node.meta.get("tensor")
        if isinstance(value, TensorInfo):
            axes = self.fresh(value)
            self.freeze(axes, call, reason)
            self.map.of[call.node] = axes
        elif isinstance(value, tuple):
            several = [self.fresh(v) if isinstance(v, TensorInfo) else None for v in value]
            for group in several:
                self.freeze(group or (), call, reason)
            self.map.several[call.node] = tuple(several)


def _ints(values: Sequence[int] | Ints | range) -> Ints:
    return np.asarray(values, dtype=np.int64)


def dim_of(dim: int, rank: int) -> int:
    """A non-negative dimension."""
    return dim + rank if dim < 0 else dim


def is_tensor(value: Any) -> bool:
    """Whether a call argument is a tensor operand (nodes that yield sizes are not)."""
    if isinstance(value, Reference):
        return True
    return isinstance(value, fx.Node) and element_info(value) is not None


def tensor_operands(call: Call) -> list[Ref]:
    """Tensor operands in argument order."""
    return [ref for _, ref in call.refs() if is_tensor(ref)]
