"""Which channels stand or fall together.

Slices linked by the relations of ``rules.axes`` form *units*: the channels added to each other in a residual
block, what BatchNorm and depthwise convolutions pass through, the same channel of every group of a grouped
convolution. A product axis is divided along the factor with the most channels that may go. Masks that cover
whole units are removed completely.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fxcompress.passes.propagate import structural_slices
from fxcompress.rules.axes import Axis, Bools, Ints, Link, Obstacle, Product
from fxcompress.rules.flow import Flow


@dataclass(frozen=True)
class Units:
    """``label`` gives each slice of each axis its unit; ``fixed[unit]`` says that something needs it
    whole.
    """

    labels: dict[int, Ints]
    fixed: Bools
    causes: dict[int, str]

    def of(self, axis: Axis) -> Ints:
        """The unit of each slice of ``axis``."""
        return self.labels[id(axis.find())]


def find_units(flow: Flow, along: Mapping[int, int] | None = None) -> Units:
    """Group all slices of all axes into units (connected components, vectorized).

    ``along`` (see ``attention_heads``) says by the id of an axis that products are to be divided along it
    (1) or along another factor (-1).
    """
    axes = [a for a in flow.map.roots() if not a.dynamic]
    products, along = _without_batch(flow), along or {}
    sizes = {id(a): a.size for a in axes} | {id(p.whole): p.whole.size for p in products}
    offsets = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
    total = sum(sizes.values())
    left: list[Ints] = []
    right: list[Ints] = []
    must, free = _structure(flow, axes)
    while _freeze_spanning(products, free, along):
        must, free = _structure(flow, axes)
    links = (r for r in flow.map.relations if isinstance(r, Link))
    edges = [_link_edges(link, offsets) for link in links]
    for pair in edges + [_product_edges(product, offsets, free, along) for product in products]:
        if pair is not None:
            left.append(pair[0])
            right.append(pair[1])
    label = components(total, _concatenated(left), _concatenated(right))
    names, unit = np.unique(label, return_inverse=True)
    fixed = np.zeros(len(names), dtype=np.bool_)
    causes: dict[int, str] = {}
    for axis in axes:
        units = unit[offsets[id(axis)] + np.flatnonzero(must[id(axis)])]
        fixed[units] = True
        if axis.frozen is not None:
            at = axis.frozen.node and f"({axis.frozen.node})"
            for u in units.tolist():
                causes.setdefault(u, " ".join(filter(None, (axis.frozen.reason, at))))
    labels = {id(a): unit[offsets[id(a)] : offsets[id(a)] + a.size] for a in axes}
    return Units(labels, fixed, causes)


def _structure(flow: Flow, axes: list[Axis]) -> tuple[dict[int, Bools], dict[int, int]]:
    """Which slices of each axis must stay, and how many of them may go."""
    must = structural_slices(flow)
    return must, {id(a): int((~must[id(a)]).sum()) for a in axes}


def _without_batch(flow: Flow) -> list[Product]:
    """The products; where the batch is one of several factors, that of the others, its whole a stand-in.

    Products of one whole, into batch and heads here and there, so tie their factors to each other. A whole
    that takes the batch apart in two ways freezes the factors instead.
    """
    products = [p for p in flow.map.relations if isinstance(p, Product)]
    found: list[Product] = []
    stand_ins: dict[int, tuple[Axis, tuple[bool, ...]]] = {}
    for product in products:
        whole = product.whole.find()
        if not whole.dynamic:
            found.append(product)
            continue
        still = tuple(f for f in product.factors if not f.find().dynamic)
        if not still:
            continue
        ends = tuple(f.find().dynamic for f in (product.factors[0], product.factors[-1]))
        size = math.prod(f.size for f in still)
        stand_in, same = stand_ins.setdefault(id(whole), (Axis(size), ends))
        if len(still) == len(product.factors) - 1 and any(ends) and same == ends and stand_in.size == size:
            found.append(Product(stand_in, still))
            continue
        for factor in (f.find() for f in still):
            factor.frozen = factor.frozen or Obstacle("", "its slices are merged with the batch")
    return found


def attention_heads(flow: Flow, axis: Axis) -> set[int]:
    """The ids of the axes that are heads of the attention that ``axis``, a layer's output, takes part in.

    A head axis is one over which two activations are multiplied matrix by matrix, and which relations lead
    to from ``axis``: channels are products of heads and features, perhaps sliced out of more.
    """
    products = _without_batch(flow)
    near: dict[int, set[int]] = defaultdict(set)
    merged: dict[int, list[Axis]] = defaultdict(
        list
    )  # the factors beside the batch, by what they are merged to
    links = [(r.a, r.b) for r in flow.map.relations if isinstance(r, Link)]
    for one, *others in [*links, *((p.whole, *p.factors) for p in products)]:
        for other in others:
            near[id(one.find())].add(id(other.find()))
            near[id(other.find())].add(id(one.find()))
    for relation in flow.map.relations:
        if isinstance(relation, Product) and relation.whole.find().dynamic:
            merged[id(relation.whole.find())] += [f for f in relation.factors if not f.find().dynamic]
    heads: set[int] = set()
    for batched in (a.find() for a in flow.map.batched):
        heads.update(id(a.find()) for a in (merged[id(batched)] if batched.dynamic else [batched]))
    grown = 0
    while grown != len(heads):  # query heads are key heads × queries that share one
        grown = len(heads)
        for product in products:
            whole, factors = id(product.whole.find()), {id(f.find()) for f in product.factors}
            if whole in heads:
                heads |= factors
            elif len(factors) == 1 and factors <= heads:  # merged with the batch alone
                heads.add(whole)
    reached, waiting = {id(axis.find())}, [id(axis.find())]
    while waiting:
        more = near[waiting.pop()] - reached
        reached |= more
        waiting += more
    return heads & reached


def _freeze_spanning(products: list[Product], free: dict[int, int], along: Mapping[int, int]) -> bool:
    """Freeze the factors that some product is not divided along: masks for a unit of theirs would leave that
    product's channels unmasked. Returns whether there were any.
    """
    found = False
    for product in products:
        factors = [f.find() for f in product.factors]
        active = _active(factors, free, along)
        for index, factor in enumerate(factors):
            if index != active and free.get(id(factor), 0) and factor is not factors[active]:
                factor.frozen = Obstacle("", "its slices span channels that are pruned one by one")
                found = True
    return found


def _active(factors: list[Axis], free: dict[int, int], along: Mapping[int, int]) -> int:
    """The factor that a product is divided along: the one that ``along`` asks for, or the one with the most
    slices that may go.
    """

    def rank(index: int) -> tuple[int, int]:
        may_go = free.get(id(factors[index]), 0)
        return along.get(id(factors[index]), 0) if may_go else -2, may_go

    return max(range(len(factors)), key=rank)


def _concatenated(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _link_edges(link: Link, offsets: dict[int, int]) -> tuple[Ints, Ints] | None:
    a, b = id(link.a.find()), id(link.b.find())
    return (offsets[a] + link.ia, offsets[b] + link.ib) if a in offsets and b in offsets else None


def _product_edges(
    product: Product, offsets: dict[int, int], free: dict[int, int], along: Mapping[int, int]
) -> tuple[Ints, Ints] | None:
    """Tie each slice of the whole to its slice of the factor it is divided along."""
    whole = product.whole.find()
    factors = [f.find() for f in product.factors]
    active = _active(factors, free, along)
    if not free.get(id(factors[active])) or id(whole) not in offsets:
        return None
    index = np.indices([f.size for f in factors])[active].reshape(-1)
    return offsets[id(whole)] + np.arange(whole.size), offsets[id(factors[active])] + index


def components(size: int, left: Ints, right: Ints) -> Ints:
    """Connected components of an edge list: the least member of each node's component."""
    label = np.arange(size)
    while True:
        low = np.minimum(label[left], label[right])
        new = label.copy()
        np.minimum.at(new, label[left], low)
        np.minimum.at(new, label[right], low)
        new = np.minimum(new, new[new])
        while not np.array_equal(new, new[new]):
            new = new[new]
        if np.array_equal(new, label):
            return label
        label = new
