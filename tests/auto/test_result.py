"""The front, the best, and what is written of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxcompress.auto import plot_front
from fxcompress.auto.limits import COSTS, limits_of
from fxcompress.auto.options import Options
from fxcompress.auto.result import Row, SearchResult, _front
from fxcompress.auto.study import import_optuna
from fxcompress.auto.table import Show
from fxcompress.errors import FxcompressError

DENSE = {"metric": 0.95, "measured": dict.fromkeys(COSTS, 100.0), "shares": dict.fromkeys(COSTS, 1.0)}


def row(number: int, metric: float | None, macs: float, *, fits: bool = True, **changes: Any) -> Row:
    measured = dict.fromkeys(COSTS, 1.0) | {"macs": 100 * macs}
    shares = dict.fromkeys(COSTS, 0.01) | {"macs": macs}
    done = Row(number, "complete", metric, fits, measured, shares, {"p": number}, [], None, None, 1.0, None)
    return replace(done, **changes)


def found(rows: list[Row], **options: Any) -> SearchResult:
    settings = Options(**options)
    return SearchResult(tuple(rows), _front(rows, settings), DENSE, settings)


def test_the_front_holds_what_no_other_surpasses() -> None:
    rows = [
        row(0, 0.9, 0.5),
        row(1, 0.8, 0.3),
        row(2, 0.85, 0.5),
        row(3, 0.9, 0.6),
        row(4, 0.7, 0.2, fits=False),
    ]
    result = found([*rows, row(5, 0.8, 0.3)], objectives=("macs",))
    assert [r.number for r in result.front] == [0, 1]
    assert result.best.number == 0


def test_with_one_objective_the_first_of_the_best_wins() -> None:
    rows = [row(0, 0.9, 0.5), row(1, 0.99, 0.5, fits=False), row(2, 0.92, 0.4), row(3, 0.92, 0.3)]
    assert found(rows).best.number == 2
    assert found(rows, direction="minimize").best.number == 0


def test_without_a_trial_that_fits_the_nearest_is_named() -> None:
    limits = limits_of({"macs": 0.4})
    rows = [row(0, 0.9, 0.8, fits=False), row(1, 0.9, 0.5, fits=False)]
    with pytest.raises(
        FxcompressError,
        match=r"no trial of 2 fits .*macs ≤ 0.4 of .*trial 1 comes closest with 50.0% of macs",
    ):
        _ = found(rows, limits=limits).best


def test_without_a_trial_that_succeeded_the_first_error_is_told() -> None:
    failed = row(0, None, 0.0, state="failed", error="ValueError: no")
    with pytest.raises(FxcompressError, match="none of 1 trials succeeded; the first said: ValueError: no"):
        _ = found([failed]).best


def test_files_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row(0, 0.9, 0.5),
        row(1, 0.8, 0.3),
        row(2, None, 0.0, state="failed", error="<b>", traceback="t"),
    ]
    result = found(rows, objectives=("macs",), limits=limits_of({"macs": 0.6}))
    result.export(tmp_path)
    assert [r["metric"] for r in json.loads((tmp_path / "trials.json").read_text())["trials"]] == [
        0.9,
        0.8,
        None,
    ]
    assert (tmp_path / "trials.csv").read_text().splitlines()[1].startswith("0,complete,0.9,True,50.0,")
    plot_front(result, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000


def test_a_terminal_gets_a_table_and_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    study = import_optuna().create_study(direction="maximize")
    with Show(Options(trials=2), study) as show:
        trial = study.ask()
        trial.set_user_attr("metric", 0.875)
        trial.set_user_attr("shares", {"macs": 0.25})
        study.tell(trial, 0.875)
        show.update()
    told = capsys.readouterr().err
    assert "0.8750" in told
    assert "25.0%" in told
    assert "1/2" in told


def test_a_model_of_another_machine_is_named(tmp_path: Path) -> None:
    elsewhere = found([row(7, 0.9, 0.5, folder=tmp_path / "nowhere")])
    with pytest.raises(FxcompressError, match=r"trial 7: its model is in .* not on this machine"):
        _ = elsewhere.model
