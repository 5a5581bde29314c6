"""The layout: ranks, no two things in one place, straight chains."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.page.layout import Layout, layered

BOX, LANE, GAP = 100.0, 4.0, 10.0
RESIDUAL = [(0, 1), (1, 2), (2, 3), (0, 3), (3, 4)]


def laid_out(count: int, edges: list[tuple[int, int]]) -> Layout:
    return layered(count, edges, box=BOX, lane=LANE, gap=GAP)


def test_a_chain_is_straight_and_what_skips_it_goes_around() -> None:
    layout = laid_out(5, RESIDUAL)
    assert layout.ranks == (0, 1, 2, 3, 4)
    assert layout.x == pytest.approx([layout.x[0]] * 5, abs=1e-6)
    lane = layout.routes[0, 3]
    assert len(lane) == 2
    assert lane[0] == pytest.approx(lane[1], abs=1e-6)
    assert abs(lane[0] - layout.x[0]) == pytest.approx(BOX / 2 + GAP + LANE / 2)
    assert layout.width == pytest.approx(BOX + GAP + LANE)


def test_branches_stand_beside_each_other_around_what_they_read() -> None:
    layout = laid_out(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert layout.ranks == (0, 1, 1, 2)
    assert layout.x[2] - layout.x[1] == pytest.approx(BOX + GAP)
    assert layout.x[0] == pytest.approx((layout.x[1] + layout.x[2]) / 2)
    assert layout.x[3] == pytest.approx(layout.x[0])


def test_lines_of_one_box_share_a_lane() -> None:
    layout = laid_out(4, [(0, 1), (1, 2), (2, 3), (0, 2), (0, 3)])
    assert layout.routes[0, 2][0] == layout.routes[0, 3][0]


def test_what_reads_nothing_stands_above_its_reader() -> None:
    assert laid_out(4, [(0, 1), (1, 3), (2, 3)]).ranks == (0, 1, 1, 2)


def test_nothing_has_no_width() -> None:
    assert laid_out(0, []) == Layout((), (), {}, 0.0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.data())
def test_nothing_overlaps(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 14))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    edges = sorted({(min(p), max(p)) for p in data.draw(st.lists(pairs, max_size=24)) if p[0] != p[1]})
    layout = laid_out(count, edges)
    rows: dict[int, set[tuple[float, float]]] = {}
    for rank, x in zip(layout.ranks, layout.x, strict=True):
        assert (x, BOX) not in rows.setdefault(rank, set())
        rows[rank].add((x, BOX))
    for (a, b), lanes in layout.routes.items():
        assert len(lanes) == layout.ranks[b] - layout.ranks[a] - 1 >= 0
        for rank, x in enumerate(lanes, layout.ranks[a] + 1):
            rows[rank].add((x, LANE))
    for row in rows.values():
        for (x, wide), (y, other) in pairwise(sorted(row)):
            assert y - x >= (wide + other) / 2 + GAP - 1e-6
        assert min(x - w / 2 for x, w in row) >= -1e-6
        assert max(x + w / 2 for x, w in row) <= layout.width + 1e-6
