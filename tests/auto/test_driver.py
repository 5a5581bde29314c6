"""The search goes on whatever a trial does, and what it did is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxcompress.auto.result import Row, SearchResult
from fxcompress.errors import ConfigError, FxcompressError
from tests.auto.stub import BEHAVIOURS, driver, propose_each


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """Five trials by two workers, one of each behaviour."""
    folder = tmp_path_factory.mktemp("each")
    return driver(folder, propose_each, {"macs": 0.99}, trials=5, workers=2, time_limit=1.0).run()


def those(found: SearchResult, behaviour: str) -> list[Row]:
    return [row for row in found.trials if BEHAVIOURS[row.number % len(BEHAVIOURS)] == behaviour]


def test_every_trial_ends_as_it_should(found: SearchResult) -> None:
    states = {behaviour: {row.state for row in those(found, behaviour)} for behaviour in BEHAVIOURS}
    assert states == {"good": {"complete"}} | {b: {"failed"} for b in BEHAVIOURS[1:]}
    assert [row.number for row in found.trials] == list(range(5))


def test_a_trial_that_raises_is_recorded_with_its_traceback(found: SearchResult) -> None:
    for row in those(found, "raises"):
        assert row.error == "ValueError: the user's mistake"
        assert row.traceback is not None
        assert 'raise ValueError("the user\'s mistake")' in row.traceback


def test_a_trial_that_hangs_is_given_up_at_the_time_limit(found: SearchResult) -> None:
    for row in those(found, "hangs"):
        assert row.error == "ran longer than the time limit of 1 s"
        assert row.seconds is not None
        assert 1.0 <= row.seconds < 60.0


def test_a_process_that_ends_is_recorded_with_its_exit_code(found: SearchResult) -> None:
    assert {row.error for row in those(found, "exits")} == {"the worker process died (exit code 7)"}


def test_an_evaluator_that_returns_nan_is_a_failure_that_says_so(found: SearchResult) -> None:
    expected = "the evaluator returned nan; expected a finite number"
    assert {row.error for row in those(found, "nan")} == {expected}


def test_only_the_best_keeps_its_model(found: SearchResult) -> None:
    kept = {row.number for row in found.trials if row.folder and (row.folder / "small.pt2").exists()}
    assert kept == {found.best.number}


def test_the_files_hold_every_trial(found: SearchResult) -> None:
    folder = found.options.folder
    record = json.loads((folder / "trials.json").read_text())
    assert [row["state"] for row in record["trials"]] == [row.state for row in found.trials]
    lines = (folder / "trials.csv").read_text().splitlines()
    assert len(lines) == 6
    assert "ValueError: the user's mistake" in "".join(lines)
    page = (folder / "report.html").read_text()
    assert "the user&#39;s mistake" in page
    assert "<svg" in page
    assert "src=" not in page.replace("xlink:", "")


def test_a_study_of_another_search_is_refused(found: SearchResult) -> None:
    with pytest.raises(FxcompressError, match="was made by another search"):
        driver(found.options.folder, propose_each, {"macs": 0.5}, trials=5)


def test_a_job_that_cannot_be_sent_is_refused_by_name(tmp_path: Path) -> None:
    from fxcompress.auto import search

    with pytest.raises(ConfigError, match=r"evaluate: cannot be sent to worker processes .*module:name"):
        search("tests.auto.task:model", lambda module: 1.0, folder=tmp_path)
