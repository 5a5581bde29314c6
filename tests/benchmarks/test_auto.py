"""The benchmark of samplers: its parts."""

from __future__ import annotations

import math

from benchmarks.auto import best_so_far, table_of


def test_the_best_so_far_never_falls_and_failures_add_nothing() -> None:
    assert best_so_far([None, 1.0, 0.5, None, 2.0]) == [-math.inf, 1.0, 1.0, 1.0, 2.0]


def test_the_table_holds_mean_and_spread_over_seeds() -> None:
    runs = {"tpe": {"0": [1.0] * 5, "1": [3.0] * 5}, "random": {"0": [1.0] * 5}}
    table = table_of(runs)
    assert list(table.columns[1].cells) == ["2.0000 ± 1.4142", "1.0000 ± 0.0000"]
