"""Killed and started again: no trial that ended is lost, and none is run twice."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fxcompress.auto.options import Options
from fxcompress.auto.result import Row, SearchResult
from fxcompress.auto.study import default_storage, import_optuna, open_storage

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120.0


def start(folder: Path, trials: int, workers: int = 1, storage: str = "") -> subprocess.Popen[bytes]:
    """A search of stubs in a process of its own."""
    command = [sys.executable, "-m", "tests.auto.stub", str(folder), str(trials), str(workers), storage]
    with (folder / "stderr.txt").open("ab") as stream:
        return subprocess.Popen(command, cwd=ROOT, stderr=stream, start_new_session=True)


opened = functools.cache(open_storage)


def rows(folder: Path, storage: str = "") -> tuple[Row, ...]:
    """The trials that the study holds; none before there is a study."""
    place = opened(storage or default_storage(folder))
    try:
        study = import_optuna().load_study(study_name="search", storage=place)
    except KeyError:
        return ()
    return SearchResult.of(study, Options(folder), {}).trials


def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < TIMEOUT
        time.sleep(0.1)


def runs(folder: Path) -> dict[int, set[int]]:
    """Trial number → the worker processes that ran it."""
    found: dict[int, set[int]] = {}
    for file in (folder / "runs").glob("*"):
        number, process = map(int, file.name.split())
        found.setdefault(number, set()).add(process)
    return found


def ended(folder: Path) -> list[int]:
    return [row.number for row in rows(folder) if row.state == "complete"]


@pytest.mark.parametrize(
    "how",
    [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=["kill -9", "Ctrl-C"],
)
def test_a_search_goes_on_where_it_was_stopped(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, trials=5)
    until((tmp_path / "study.db").exists)
    until(lambda: len(ended(tmp_path)) >= 2 and len(runs(tmp_path)) > len(ended(tmp_path)))
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    assert process.wait(TIMEOUT) != 0
    before = {row.number: row for row in rows(tmp_path) if row.state == "complete"}

    assert start(tmp_path, trials=5).wait(TIMEOUT) == 0, (tmp_path / "stderr.txt").read_text()
    after = {row.number: row for row in rows(tmp_path)}
    assert {number: after[number].metric for number in before} == {n: r.metric for n, r in before.items()}
    complete = [row for row in after.values() if row.state == "complete"]
    interrupted = [row for row in after.values() if row.state == "interrupted"]
    assert len(complete) == 5
    assert len(interrupted) <= 1
    assert all(len(processes) == 1 for processes in runs(tmp_path).values())
    again = {row.params["x"] for row in complete}
    assert len(again) == 5
    assert all(row.params["x"] in again for row in interrupted)


def test_a_worker_that_is_killed_costs_one_trial(tmp_path: Path) -> None:
    process = start(tmp_path, trials=3)
    until(lambda: runs(tmp_path))
    (victim,) = runs(tmp_path)[0]
    os.kill(victim, signal.SIGKILL)
    assert process.wait(TIMEOUT) == 0
    found = rows(tmp_path)
    assert [row.state for row in found] == ["failed", "complete", "complete"]
    assert found[0].error == "the worker process died (signal 9)"


@pytest.mark.slow
def test_workers_die_with_the_main_process(tmp_path: Path) -> None:
    process = start(tmp_path, trials=100)
    until(lambda: runs(tmp_path))
    process.kill()
    process.wait()
    (worker,) = set().union(*runs(tmp_path).values())
    until(lambda: not Path(f"/proc/{worker}").exists())
