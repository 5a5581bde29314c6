"""Where the boxes of a layered drawing stand, and how the lines between them run.

    rank(v) = 1 + max rank of what v reads;  a line over several ranks gets a slot of its own in each of them

The order within a rank is the barycenter of the neighbours', swept down and up; positions are the mean of the
neighbours', moved apart as little as possible in the least squares sense (Sugiyama, Tagawa, Toda 1981). Lines
from the same box share their slots, so that a value which many read takes one lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

SWEEPS = 12
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
    above: dict[Slot, list[Slot]] = defaultdict(list)
    below: dict[Slot, list[Slot]] = defaultdict(list)
    for upper, lower in sorted(links):
        below[upper].append(lower)
        above[lower].append(upper)
    widths = {slot: box if ranks[slot[0]] == slot[1] else lane for slot in slots}
    _order(rows, above, below)
    x = _positions(rows, above, below, widths, gap)
    left = min((x[s] - widths[s] / 2 for s in slots), default=0.0)
    right = max((x[s] + widths[s] / 2 for s in slots), default=0.0)
    return Layout(
        ranks=tuple(ranks),
        x=tuple(x[v, ranks[v]] - left for v in range(count)),
        routes={(a, b): tuple(x[a, r] - left for r in range(ranks[a] + 1, ranks[b])) for a, b in edges},
        width=right - left,
    )


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


def _order(
    rows: list[list[Slot]], above: dict[Slot, list[Slot]], below: dict[Slot, list[Slot]]
) -> None:
    """Sort every rank by the barycenter of its neighbours above, then below, and again."""
    for sweep in range(SWEEPS):
        neighbours, ordered = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        place: dict[Slot, float] = {}
        for row in ordered:
            now = {slot: float(i) for i, slot in enumerate(row)}
            wish = {s: _mean([place[n] for n in neighbours[s]], now[s]) for s in row}
            row.sort(key=lambda slot: (wish[slot], now[slot]))
            place.update({slot: float(i) for i, slot in enumerate(row)})


def _positions(
    rows: list[list[Slot]],
    above: dict[Slot, list[Slot]],
    below: dict[Slot, list[Slot]],
    widths: dict[Slot, float],
    gap: float,
) -> dict[Slot, float]:
    x = dict.fromkeys(widths, 0.0)
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wishes = [_mean([x[n] for n in (*above[s], *below[s])], x[s]) for s in row]
            x.update(zip(row, _apart(wishes, [widths[s] for s in row], gap), strict=True))
    return x


def _apart(wishes: Sequence[float], widths: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to ``wishes`` in the same order without overlap: isotonic regression."""
    shifts = [0.0]
    for left, right in zip(widths, widths[1:], strict=False):
        shifts.append(shifts[-1] + (left + right) / 2 + gap)
    pools: list[tuple[float, int]] = []
    for wish, shift in zip(wishes, shifts, strict=False):
        total, size = wish - shift, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / size:
            other, count = pools.pop()
            total, size = total + other, size + count
        pools.append((total, size))
    flat = [total / size for total, size in pools for _ in range(size)]
    return [value + shift for value, shift in zip(flat, shifts, strict=False)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
