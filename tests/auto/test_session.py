"""Lost trials: whose process is gone, what of them is told, and what is run again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fxcompress.auto import session as module
from fxcompress.auto.jobs import RESULT, write_json
from fxcompress.auto.session import Session, counted
from fxcompress.auto.study import import_optuna, make_pruner, make_sampler, open_storage, open_study
from fxcompress.errors import ConfigError, FxcompressError

Study = Any


@pytest.fixture(params=["study.db", "study.log"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Study:
    """An empty study in SQLite, and in a journal file."""
    path = tmp_path / request.param
    url = f"sqlite:///{path}" if path.suffix == ".db" else str(path)
    return open_study(open_storage(url), "s", {"metric": "maximize"}, "signature")


def make(study: Study, trials: int = 3) -> Session:
    def tell(trial: Any, result: dict[str, Any]) -> None:
        study.tell(trial, result["metric"])

    return Session(study, trials, tell)


def lost(study: Study, facts: dict[str, Any], **attributes: Any) -> Any:
    """A running trial of a session with these facts."""
    study.set_user_attr("session/other", facts)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    for key, value in {"session": "other", **attributes}.items():
        trial.set_user_attr(key, value)
    return trial


def states(study: Study) -> list[str]:
    return [row.state.name for row in study.get_trials(deepcopy=False)]


HERE = {"beat": 3, "host": module._host(), "pid": os.getpid(), "start": module._start_of(os.getpid())}


def test_a_trial_of_a_process_that_is_gone_is_queued_again(study: Study) -> None:
    trial = lost(study, HERE | {"start": "another process had this id"})
    with make(study) as session:
        session.recover()
        assert states(study) == ["FAIL", "WAITING"]
        again = session.start()
        assert again is not None
        assert again.suggest_float("x", 0, 1) == trial.params["x"]
        assert again.user_attrs["retry_of"] == 0
        assert [row.number for row in counted(study)] == [1]


def test_a_lost_trial_whose_result_is_on_disk_is_told(study: Study, tmp_path: Path) -> None:
    write_json(tmp_path / RESULT, {"metric": 0.75})
    lost(study, HERE | {"pid": 2**22 + 1}, folder=str(tmp_path))
    with make(study) as session:
        session.recover()
    assert states(study) == ["COMPLETE"]
    assert study.trials[0].value == 0.75


def test_a_trial_of_a_process_that_runs_is_left_alone(study: Study) -> None:
    lost(study, HERE)
    with make(study) as session:
        session.recover()
        assert session.others_run()
    assert states(study) == ["RUNNING"]


def test_a_process_elsewhere_is_gone_when_its_beat_stands_still(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    facts = HERE | {"host": "elsewhere"}
    lost(study, facts)
    session = make(study)
    session.recover()
    now[0] += module.GRACE - 1
    study.set_user_attr("session/other", facts | {"beat": 4})
    session.recover()
    now[0] += module.GRACE - 1
    session.recover()
    assert states(study) == ["RUNNING"]
    now[0] += 2
    session.recover()
    assert states(study) == ["FAIL", "WAITING"]


def test_a_trial_that_runs_at_the_end_is_queued_again(study: Study) -> None:
    with make(study) as session:
        trial = session.start()
        assert trial is not None
        trial.suggest_float("x", 0, 1)
    assert states(study) == ["FAIL", "WAITING"]
    assert counted(study) == []


def test_a_trial_that_has_just_ended_is_told_at_the_end(study: Study, tmp_path: Path) -> None:
    with make(study) as session:
        trial = session.start()
        assert trial is not None
        trial.set_user_attr("folder", str(tmp_path))
        write_json(tmp_path / RESULT, {"metric": 0.75})
    assert states(study) == ["COMPLETE"]


def test_no_more_trials_than_asked_for(study: Study) -> None:
    with make(study, trials=2) as session:
        started = [session.start() for _ in range(3)]
        assert [trial is None for trial in started] == [False, False, True]


def test_one_process_too_many_gives_its_trial_back(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.ask()  # of another process, at a moment at which this one still sees none
    early = iter([True, False])
    monkeypatch.setattr(module, "counted", lambda study: [] if next(early) else counted(study))
    with make(study, trials=1) as session:
        assert session.start() is None
    assert states(study) == ["RUNNING", "FAIL"]
    assert study.trials[1].user_attrs["surplus"] is True


def test_samplers_and_pruners_by_name() -> None:
    optuna = import_optuna()
    assert isinstance(make_sampler("TPE", 0, {"n_startup_trials": 3}), optuna.samplers.TPESampler)
    assert isinstance(make_sampler("GridSearch", 0, {}), optuna.samplers.BruteForceSampler)
    assert isinstance(make_sampler("nsgaii", 0, {}), optuna.samplers.NSGAIISampler)
    assert isinstance(make_pruner("median", {"n_startup_trials": 2}), optuna.pruners.MedianPruner)
    assert isinstance(make_pruner(None, {}), optuna.pruners.NopPruner)
    with pytest.raises(ConfigError, match=r"sampler: Optuna has no sampler 'tpr'; did you mean 'tpe'"):
        make_sampler("tpr", 0, {})
    with pytest.raises(ConfigError, match=r"pruner 'median': .*unexpected keyword argument 'speed'"):
        make_pruner("median", {"speed": 1})


def test_a_storage_that_cannot_be_opened_is_named_without_its_password() -> None:
    with pytest.raises(FxcompressError, match=r"storage oracle://host/x: cannot be opened") as caught:
        open_storage("oracle://user:secret@host/x")
    assert "secret" not in str(caught.value)
