"""Blocks: the deepest modules that are few enough."""

from __future__ import annotations

from fxcompress.page.blocks import blocks

PLACES = [("stem",), ("a", "0", "x"), ("a", "0", "y"), ("a", "1", "x"), ("b", "x"), ("b", "y")]


def test_few_layers_stay_themselves() -> None:
    assert blocks(PLACES, 6)[1] == ("a.0.x", [1])
    assert len(blocks(PLACES, 6)) == 6


def test_the_deepest_level_goes_first() -> None:
    assert blocks(PLACES, 5) == [
        ("stem", [0]),
        ("a.0", [1, 2]),
        ("a.1.x", [3]),
        ("b.x", [4]),
        ("b.y", [5]),
    ]


def test_then_the_next() -> None:
    assert blocks(PLACES, 3) == [("stem", [0]), ("a", [1, 2, 3]), ("b", [4, 5])]


def test_at_the_top_level_runs_of_equal_length_are_left() -> None:
    assert blocks([(str(i),) for i in range(5)], 2) == [("0 … 2", [0, 1, 2]), ("3 … 4", [3, 4])]


def test_what_is_apart_stays_apart() -> None:
    assert blocks([("a", "x"), ("b", "x"), ("a", "y")], 2)[0][1] == [0, 1]


def test_nothing_is_no_block() -> None:
    assert blocks([], 3) == []
