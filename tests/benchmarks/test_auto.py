"""The benchmark of samplers: its parts."""

from __future__ import annotations

import math
import statistics

from benchmarks.auto import best_so_far, table_of
from benchmarks.results_file import LONG, ROOT, read_json


def test_the_best_so_far_never_falls_and_failures_add_nothing() -> None:
    assert best_so_far([None, 1.0, 0.5, None, 2.0]) == [-math.inf, 1.0, 1.0, 1.0, 2.0]


def test_the_figures_of_the_docs_are_the_recorded_ones() -> None:
    runs = read_json(LONG / "auto.json")["runs"]
    losses = {s: -statistics.mean(line[-1] for line in lines.values()) for s, lines in runs.items()}
    better = sum(runs["tpe"][seed][-1] > runs["random"][seed][-1] for seed in runs["tpe"])
    page = " ".join((ROOT / "docs" / "auto.md").read_text(encoding="utf-8").split())
    assert f"{losses['tpe']:.3f} against {losses['random']:.3f} for random search" in page
    assert f"better in {better} of {len(runs['tpe'])} seeds" in page


def test_the_table_holds_mean_and_spread_over_seeds() -> None:
    runs = {"tpe": {"0": [1.0] * 5, "1": [3.0] * 5}, "random": {"0": [1.0] * 5}}
    table = table_of(runs)
    assert list(table.columns[1].cells) == ["2.0000 ± 1.4142", "1.0000 ± 0.0000"]
