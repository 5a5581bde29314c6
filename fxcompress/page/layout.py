"""Where the boxes of a layered drawing stand, and how the lines between them run.

    rank(v) = 1 + max rank of what v reads;  a line over several ranks gets a slot of its own in each of them

The order within a rank is the barycenter of the neighbours', swept down and up; positions are the mean of the
neighbours', moved apart as little as possible in the least squares sense (Sugiyama, Tagawa, Toda 1981). Boxes
weigh more than lanes, so that a chain is straight and what skips it goes around. Lines from the same box
share their slots: a value which many read takes one lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 9
Slot = tuple[int, int]
"""A box (its number, its rank) or a lane (the box it comes from, the rank it passes)."""


@dataclass(frozen=True)
class Layout:
    """``ranks`` and ``x`` (centers, from 0 on) of the boxes; ``routes``: per edge the x of every lane that it
    passes, one per rank between its ends; ``width`` of the whole drawing."""

    ranks: tuple[int, ...]
    x: tuple[float, ...]
    routes: dict[tuple[int, int], tuple[float, ...]]
    width: float


def layered(count: int, edges: Sequence[tuple[int, int]], *, box: float, lane: float, gap: float) -> Layout:
    """Lay out ``count`` boxes.

    Args:
        edges: ``(a, b)`` with ``a < b``: ``b`` is below ``a``.
        box: width of a box; ``lane``: of a line that passes; ``gap``: between any two of them.
    """
    ranks = _ranks(count, edges)
    slots = {(v, ranks[v]) for v in range(count)}
    links: set[tuple[Slot, Slot]] = set()
    for a, b in edges:
        path = [(a, rank) for rank in range(ranks[a], ranks[b])]
        slots.update(path)
        links.update(zip(path, [*path[1:], (b, ranks[b])], strict=True))
    rows: list[list[Slot]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for slot in sorted(slots):
        rows[slot[1]].append(slot)
    near = _Near.of(links)
    _order(rows, near)
    widths = {slot: box if ranks[slot[0]] == slot[1] else lane for slot in slots}
    # Boxes follow the boxes they read, whatever lies between; lanes follow their line.
    boxes = {((a, ranks[a]), (b, ranks[b])) for a, b in edges}
    follows = _Near.of(boxes | {(u, v) for u, v in links if widths[v] == lane})
    x = _positions(rows, follows, widths, gap)
    left = min((x[s] - widths[s] / 2 for s in slots), default=0.0)
    right = max((x[s] + widths[s] / 2 for s in slots), default=0.0)
    return Layout(
        ranks=tuple(ranks),
        x=tuple(x[v, ranks[v]] - left for v in range(count)),
        routes={(a, b): tuple(x[a, r] - left for r in range(ranks[a] + 1, ranks[b])) for a, b in edges},
        width=right - left,
    )


@dataclass(frozen=True)
class _Near:
    """The neighbours of a slot above it and below it."""

    above: Mapping[Slot, list[Slot]]
    below: Mapping[Slot, list[Slot]]

    @classmethod
    def of(cls, links: Collection[tuple[Slot, Slot]]) -> _Near:
        found: tuple[dict[Slot, list[Slot]], ...] = (defaultdict(list), defaultdict(list))
        for upper, lower in sorted(links):
            found[0][lower].append(upper)
            found[1][upper].append(lower)
        return cls(*found)

    def sweeps(self, rows: list[list[Slot]]) -> Iterator[tuple[Mapping[Slot, list[Slot]], list[list[Slot]]]]:
        """Down, up, ... and down at last: the neighbours that are already placed, the rows in order."""
        for sweep in range(SWEEPS):
            yield (self.below, rows[::-1]) if sweep % 2 else (self.above, rows)


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from the top; what reads nothing stands right above its first reader."""
    ranks = [0] * count
    for a, b in sorted(edges, key=lambda edge: edge[1]):
        ranks[b] = max(ranks[b], ranks[a] + 1)
    read = {b for _, b in edges}
    for v in range(count):
        readers = [ranks[b] for a, b in edges if a == v]
        if v not in read and readers:
            ranks[v] = min(readers) - 1
    return ranks


def _order(rows: list[list[Slot]], near: _Near) -> None:
    """Sort every rank by the barycenter of its neighbours above, then below, and again."""
    for neighbours, ordered in near.sweeps(rows):
        place: dict[Slot, float] = {}
        for row in ordered:
            now = {slot: float(i) for i, slot in enumerate(row)}
            wish = {s: _mean([place[n] for n in neighbours.get(s, ())], now[s]) for s in row}
            row.sort(key=lambda slot: (wish[slot], now[slot]))
            place.update({slot: float(i) for i, slot in enumerate(row)})


def _positions(
    rows: list[list[Slot]], near: _Near, widths: Mapping[Slot, float], gap: float
) -> dict[Slot, float]:
    x = dict.fromkeys(widths, 0.0)
    for neighbours, ordered in near.sweeps(rows):
        for row in ordered:
            wishes = [_mean([x[n] for n in neighbours.get(s, ())], x[s]) for s in row]
            x.update(zip(row, _apart(wishes, [widths[s] for s in row], gap), strict=True))
    return x


def _apart(wishes: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to ``wishes`` in the same order without overlap: isotonic regression, each
    weighted by a high power of its width: lanes give way to boxes.
    """
    shifts = [0.0]
    for left, right in pairwise(widths):
        shifts.append(shifts[-1] + (left + right) / 2 + gap)
    pools: list[tuple[float, float, int]] = []  # weighted mean, weight, how many
    for wish, shift, width in zip(wishes, shifts, widths, strict=False):
        mean, weight, count = wish - shift, width**8, 1
        while pools and pools[-1][0] >= mean:
            other, heavy, more = pools.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, count = weight + heavy, count + more
        pools.append((mean, weight, count))
    flat = [mean for mean, _, count in pools for _ in range(count)]
    return [value + shift for value, shift in zip(flat, shifts, strict=False)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
