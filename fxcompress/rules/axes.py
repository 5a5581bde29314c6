"""Axes of tensors and how they depend on each other.

Every dimension of every tensor in the graph is an ``Axis``. An operator that passes a dimension through
unchanged shares the axis (``unify``); others state a relation:

- ``Link``: slice ``ia[k]`` of ``a`` and slice ``ib[k]`` of ``b`` are kept or removed together (concatenation,
  slicing, splitting, rolling);
- ``Product``: ``whole`` enumerates its factors in row-major order, so what is kept of it is the outer product
  of what is kept of the factors (``view``, grouped convolution, pixel shuffle);
- ``Contraction``: the operator sums over ``inner``, so a slice is needed only where a kept slice of ``outer``
  reads it through a non-zero weight.

Removing slices keeps every node equal to the kept block of its original value, as long as all relations hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import fx

from fxcompress.graph.calls import Call, Ref

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Axis:
    """One dimension, shared by all tensors it passes through unchanged (a union-find node).

    ``least`` slices must be left of it whichever are pruned (an unbiased variance of one is no number).
    """

    __slots__ = ("_parent", "dynamic", "frozen", "least", "needed", "size")

    def __init__(self, size: int, dynamic: bool = False) -> None:
        self.size = size
        self.dynamic = dynamic
        self.frozen: Obstacle | None = None
        self.needed: list[Ints] = []
        self.least = 1
        self._parent: Axis | None = None

    def find(self) -> Axis:
        """The representative of all axes unified with this one."""
        root = self
        while root._parent is not None:
            root = root._parent
        axis = self
        while axis._parent is not None:
            axis._parent, axis = root, axis._parent
        return root

    def merge(self, other: Axis) -> None:
        """Make both the same axis. Sizes must agree."""
        a, b = self.find(), other.find()
        if a is b:
            return
        if a.size != b.size:
            raise ValueError(f"cannot unify axes of sizes {a.size} and {b.size}")
        b._parent = a
        a.frozen = a.frozen or b.frozen
        a.dynamic = a.dynamic or b.dynamic
        a.needed += b.needed
        a.least = max(a.least, b.least)


@dataclass(frozen=True)
class Obstacle:
    """Why an axis must keep all its slices."""

    node: str
    reason: str


@dataclass(frozen=True)
class Link:
    """``a[ia[k]]`` and ``b[ib[k]]`` stand or fall together."""

    a: Axis
    ia: Ints
    b: Axis
    ib: Ints


@dataclass(frozen=True)
class Product:
    """``whole`` is the row-major enumeration of ``factors``."""

    whole: Axis
    factors: tuple[Axis, ...]


@dataclass(frozen=True)
class Contraction:
    """``call`` sums over ``inner``; which slices it needs depends on ``outer`` and on the values."""

    call: Call
    source: Ref
    dim: int
    inner: Axis
    outer: Axis | None


@dataclass
class AxisMap:
    """The result of axis analysis."""

    of: dict[Ref, tuple[Axis, ...]] = field(default_factory=dict)
    several: dict[fx.Node, tuple[tuple[Axis, ...] | None, ...]] = field(default_factory=dict)
    relations: list[Link | Product] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    read_dims: set[tuple[str, int]] = field(default_factory=set)
    """``(parameter, dim)`` along which a parameter reads channels rather than makes them."""
    uses: dict[str, int] = field(default_factory=dict)
    """How many calls read each parameter."""
    unruled: dict[str, list[str]] = field(default_factory=dict)
    """Operators without a rule, with the nodes that call them."""
    batched: list[Axis] = field(default_factory=list)
    """Dimensions over which activations are multiplied matrix by matrix: attention heads, and the batch."""
    restricted: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    """Normalizations and the dimensions their statistics run over: pruning one means restricting them."""

    def roots(self) -> list[Axis]:
        """Every distinct axis, in the order in which operators use them for the last time."""
        seen: dict[int, Axis] = {}
        for axes in self._all():
            for axis in axes:
                root = axis.find()
                seen.pop(id(root), None)
                seen[id(root)] = root
        for relation in self.relations:
            members = relation.factors if isinstance(relation, Product) else (relation.a, relation.b)
            for axis in members:
                seen.setdefault(id(axis.find()), axis.find())
        return list(seen.values())

    def _all(self) -> Sequence[tuple[Axis, ...]]:
        return [
            *self.of.values(),
            *(a for several in self.several.values() for a in several if a is not None),
        ]
