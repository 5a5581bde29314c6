"""The search itself: ask the study for trials, have workers run them, tell the study what came out.

    recover lost trials → baseline → starting points → ask … run … tell → result

The study is the only memory: a process that is killed loses nothing but the trials it was running, and a
second one on the same study takes its share of what is left to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxcompress.auto.dashboard import serving
from fxcompress.auto.jobs import RESULT, Job, pickled
from fxcompress.auto.options import Options
from fxcompress.auto.page import write_pages
from fxcompress.auto.result import SearchResult
from fxcompress.auto.session import Session, counted
from fxcompress.auto.study import (
    default_storage,
    import_optuna,
    make_pruner,
    make_sampler,
    open_storage,
    open_study,
)
from fxcompress.auto.table import Show
from fxcompress.auto.worker import Event, Task, Worker, poll_any, refuse_inside_worker
from fxcompress.errors import ConfigError, FxcompressError

if TYPE_CHECKING:
    import optuna

Propose = Callable[["optuna.Trial", dict[str, Any]], dict[str, Any]]
"""``propose(trial, baseline)``: the spec of a trial, with values that the study suggests."""
TICK = 1.0
"""Seconds between looks at what other processes do."""


class Driver:
    """One process's work on a search.

    Args:
        job: what trials do.
        propose: what they try.
        space: all that ``propose`` depends on, as JSON: a study is of one space.
        options: how it runs.
    """

    def __init__(self, job: Job, propose: Propose, space: Any, options: Options) -> None:
        refuse_inside_worker()
        self.job, self.propose, self.options = job, propose, options
        self._payload = pickled(job)
        self.dense = options.folder / "dense"
        self._make_folder()
        self.storage = open_storage(options.storage or default_storage(options.folder))
        limits = [str(limit) for limit in options.limits]
        facts = json.dumps(
            [space, limits, options.objectives, options.direction], sort_keys=True, default=str
        )
        signature = hashlib.sha256(facts.encode()).hexdigest()
        self.study = open_study(self.storage, options.name, options.directions, signature)
        self.baseline: dict[str, Any] = {}
        self._workers: list[Worker] = []

    def run(self) -> SearchResult:
        """Search until there are enough trials, then write the result.

        Raises:
            FxcompressError: if the dense model itself fails.
        """
        options = self.options
        with ExitStack() as stack:
            if options.port is not None:
                stack.enter_context(serving(self.storage, options.port))
            show = stack.enter_context(Show(options, self.study))
            session = stack.enter_context(Session(self.study, options.trials, self._tell))
            fresh = session.alone and not self.study.get_trials(deepcopy=False)
            self.study.sampler = make_sampler(
                options.sampler, options.seed if fresh else None, options.sampler_options
            )
            self.study.pruner = make_pruner(options.pruner, options.pruner_options)
            threads = max(1, torch.get_num_threads() // options.workers)
            self._workers = [
                Worker(self._payload, options.environment, threads) for _ in range(options.workers)
            ]
            stack.callback(self._close)
            session.recover()
            self._prepare(show)
            self._loop(session, show)
        return self.result()

    def result(self) -> SearchResult:
        """What the study holds, with files of it written into the folder."""
        found = self._found()
        found.export(self.options.folder)
        write_pages(found, self.options.folder)
        return found

    # -- before the trials ---------------------------------------------------------------------------------
    def _prepare(self, show: Show) -> None:
        """The dense model's figures, and the points to begin with."""
        file = self.dense / RESULT
        if file.is_file():
            self.baseline = json.loads(file.read_text(encoding="utf-8"))
        else:
            show.say("measuring the dense model")
            self.baseline = self._now("baseline")
        show.dense(self.baseline)
        if not self.study.user_attrs.get("started"):
            show.say("looking for points to begin with")
            for params in self._now("warm_starts"):
                self.study.enqueue_trial(params, user_attrs={"warm": True}, skip_if_exists=True)
            self.study.set_user_attr("started", True)

    def _now(self, method: str) -> Any:
        """What a method of the job returns, run by the first worker."""
        worker = self._workers[0]
        worker.submit(Task(method, self.dense, self.dense, self.options.seed), method)
        while True:
            for event in poll_any([worker], TICK):
                worker.finish()
                if event.kind == "done":
                    return event.content[0]
                error, trace = event.content
                raise FxcompressError(
                    f"the dense model: {error}; nothing can be searched before this works"
                ) from RuntimeError(f"in the worker process:\n{trace}")

    # -- the trials ----------------------------------------------------------------------------------------
    def _loop(self, session: Session, show: Show) -> None:
        while True:
            for worker in self._workers:
                if worker.busy is None and not self._begin(worker, session):
                    break
            busy = [worker for worker in self._workers if worker.busy is not None]
            if busy:
                for event in poll_any(busy, TICK):
                    self._take(event, session)
            else:
                time.sleep(TICK / 10)
            session.recover()
            show.update()
            idle = not any(worker.busy for worker in self._workers) and not session.others_run()
            if idle and len(counted(self.study)) >= self.options.trials:
                return

    def _begin(self, worker: Worker, session: Session) -> bool:
        trial = session.start()
        if trial is None:
            return False
        folder = self._folder(trial.number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        trial.set_user_attr("folder", str(folder.resolve()))
        spec = self.propose(trial, self.baseline)
        trial.set_user_attr("spec", spec)
        reporting = self.options.pruner is not None
        task = Task("run", folder, self.dense, self.options.seed + trial.number, spec, reporting)
        worker.submit(task, (trial, time.monotonic()), self.options.time_limit)
        return True

    def _take(self, event: Event, session: Session) -> None:
        """Act on what a worker says."""
        states = import_optuna().trial.TrialState
        trial, began = event.worker.busy
        if event.kind == "report":
            step, metric = event.content
            trial.report(metric, step)
            event.worker.answer(trial.should_prune())
            return
        event.worker.finish()
        trial.set_user_attr("seconds", round(time.monotonic() - began, 2))
        if event.kind == "done":
            self._tell(trial, event.content[0])
        elif event.kind == "pruned":
            self.study.tell(trial, state=states.PRUNED)
        else:
            error, trace = event.content
            trial.set_user_attr("error", error)
            trial.set_user_attr("traceback", trace[-20_000:])
            self.study.tell(trial, state=states.FAIL)
        session.ended(trial)
        self._tidy()

    def _tell(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        """Give the study a trial's result."""
        for key in ("metric", "config_list", "measured", "shares"):
            trial.set_user_attr(key, result[key])
        for limit in self.options.limits:
            trial.set_constraint(limit.kind, limit.excess(result))
        values = [result["metric"], *(result["measured"][kind] for kind in self.options.objectives)]
        self.study.tell(trial, values)

    def _tidy(self) -> None:
        """Delete the model files of trials that are neither the best nor on the front: they never will be."""
        found = self._found()
        kept = {row.number for row in found.front}
        for row in found.trials:
            if row.number not in kept and row.state != "running" and row.folder is not None:
                for file in _model_files(row.folder):
                    file.unlink(missing_ok=True)

    def _found(self) -> SearchResult:
        return SearchResult.of(self.study, self.options, self.baseline)

    # -- around it -----------------------------------------------------------------------------------------
    def _folder(self, number: int) -> Path:
        return self.options.folder / "trials" / str(number)

    def _close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _make_folder(self) -> None:
        try:
            self.dense.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"folder {self.options.folder}: cannot be made ({error.strerror}); name another"
            ) from error


def _model_files(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (file for file in folder.iterdir() if file.name.startswith("small."))
