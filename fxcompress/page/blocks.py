"""Many layers as few blocks: consecutive ones under the same module, or else runs of equal length.

layer1.0.conv1, layer1.0.conv2, layer1.1.conv1  →  layer1.0, layer1.1
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby

Place = tuple[str, ...]
"""Where something stands in the module hierarchy: ``("layer1", "0", "conv1")``."""


def blocks(places: Sequence[Place], limit: int) -> list[tuple[str, list[int]]]:
    """Names of blocks with the positions in ``places`` that belong to them, in order.

    The deepest modules that give at most ``limit`` blocks; where there are more at the top level, runs of
    equal length. Positions of a block are consecutive, so that blocks of a topological order form no cycle.
    """
    runs = [[i] for i in range(len(places))]
    depth = max(map(len, places), default=0)
    while len(runs) > limit and depth > 1:
        depth -= 1
        runs = [list(run) for _, run in groupby(range(len(places)), key=lambda i: _key(places[i], i, depth))]
    if len(runs) > limit:
        size = -(-len(runs) // limit)
        runs = [list(chain(*runs[start : start + size])) for start in range(0, len(runs), size)]
    return [(_name([places[i] for i in run], depth), run) for run in runs]


def _key(place: Place, index: int, depth: int) -> Place | int:
    return place[:depth] if len(place) > depth else index


def _name(places: Sequence[Place], depth: int) -> str:
    if len(places) == 1:
        return ".".join(places[0])
    first, last = (".".join(place[:depth]) for place in (places[0], places[-1]))
    return first if first == last else f"{first} … {last}"
