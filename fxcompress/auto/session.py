"""One process's part in a study that others may share: whose trials are running, and whose are lost.

Every process writes a beat into the study. A running trial is *lost* when the process that started it is
gone: at once for a process of this machine, by its id and start; after ``GRACE`` seconds without a new beat
for one of another machine. A lost trial whose result is on disk is told to the study after all; any other is
recorded as interrupted and its parameters are queued again. Interrupted trials do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fxcompress.auto.jobs import RESULT
from fxcompress.auto.study import import_optuna

if TYPE_CHECKING:
    import optuna

BEAT, GRACE = 5.0, 60.0
"""Seconds between beats, and without one until a process on another machine counts as gone."""
_KEY = "session/"
Tell = Callable[["optuna.Trial", dict[str, Any]], None]


class Session:
    """This process's part. A context manager: inside, it beats."""

    def __init__(self, study: optuna.Study, trials: int, tell: Tell) -> None:
        self.study, self.limit, self._tell = study, trials, tell
        self.id = secrets.token_hex(8)
        self._running: set[int] = set()
        self._seen: dict[str, tuple[Any, float]] = {}
        self._ended = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Session:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for row in self._running_rows():
            if row.number in self._running:
                self._settle(row)
        self._beats = -1
        self._write()

    @property
    def alone(self) -> bool:
        """Whether no other process has ever worked on this study."""
        return [key for key in self.study.user_attrs if key.startswith(_KEY)] in ([], [_KEY + self.id])

    # -- trials --------------------------------------------------------------------------------------------
    def start(self) -> optuna.Trial | None:
        """A new trial, unless there are enough."""
        if len(counted(self.study)) >= self.limit:
            return None
        trial = self.study.ask()
        trial.set_user_attr("session", self.id)
        rows = sorted(counted(self.study), key=lambda row: (row.datetime_start, row.number))
        if [t.number for t in rows].index(trial.number) >= self.limit:  # others were faster
            trial.set_user_attr("surplus", True)
            self.study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
            return None
        self._running.add(trial.number)
        return trial

    def ended(self, trial: optuna.Trial) -> None:
        """The study has been told of a trial of this process."""
        self._running.discard(trial.number)

    def others_run(self) -> bool:
        """Whether trials of other processes are running."""
        return any(row.number not in self._running for row in self._running_rows())

    def recover(self) -> None:
        """Tell the study what became of lost trials."""
        attributes = self.study.user_attrs
        for row in self._running_rows():
            if row.number not in self._running and self._gone(row, attributes):
                self._settle(row)

    def _settle(self, row: optuna.trial.FrozenTrial) -> None:
        """Tell what a trial left on disk, or that it was interrupted."""
        optuna = import_optuna()
        trial = optuna.Trial(self.study, row._trial_id)
        result = Path(row.user_attrs.get("folder", os.devnull)) / RESULT
        with contextlib.suppress(ValueError, RuntimeError):  # where another process was faster
            if result.is_file():
                self._tell(trial, json.loads(result.read_text(encoding="utf-8")))
                return
            trial.set_user_attr("interrupted", True)
            trial.set_user_attr("error", "interrupted: the process that ran it ended")
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            self.study.enqueue_trial(row.params, user_attrs={"retry_of": row.number})

    def _running_rows(self) -> list[optuna.trial.FrozenTrial]:
        running = import_optuna().trial.TrialState.RUNNING
        return list(self.study.get_trials(deepcopy=False, states=(running,)))

    def _gone(self, row: optuna.trial.FrozenTrial, attributes: dict[str, Any]) -> bool:
        """Whether the process that started a trial is."""
        session = row.user_attrs.get("session")
        told = attributes.get(f"{_KEY}{session}")
        if told is not None and told["beat"] < 0:
            return True
        if told is not None and told["host"] == _host():
            return bool(_start_of(told["pid"]) != told["start"])
        key, now = session or f"trial {row.number}", time.monotonic()
        beat = None if told is None else told["beat"]
        before, since = self._seen.get(key, (-2, now))
        self._seen[key] = (beat, since if before == beat else now)
        return before == beat and now - since > GRACE

    # -- the beat ------------------------------------------------------------------------------------------
    def _write(self) -> None:
        pid = os.getpid()
        facts = {"beat": self._beats, "host": _host(), "pid": pid, "start": _start_of(pid)}
        self.study.set_user_attr(_KEY + self.id, facts)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._beats += 1
            with contextlib.suppress(Exception):  # a database that is away for a moment: the next beat tells
                self._write()


def counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: all but those waiting, interrupted, or one too many."""
    waiting = import_optuna().trial.TrialState.WAITING
    rows = study.get_trials(deepcopy=False)
    return [r for r in rows if r.state != waiting and not {"interrupted", "surplus"} & set(r.user_attrs)]


def _host() -> str:
    """The same for processes that see each other's ids."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return str(uuid.getnode())


def _start_of(pid: int) -> str | None:
    """When a process of this machine started, ``None`` if it does not run; ids are used again."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "running"
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] == "Z" else words[19]
