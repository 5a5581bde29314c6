"""Worker processes: one runs a trial at a time, can be given up at any moment, and dies with its parent.

    parent                              worker
    submit(task, …)               →     unpickle the job
                                  ←     ("begun",): the time limit counts from here
                                        job.run(…)
                                  ←     ("report", step, metric)
    stop or go on                 →
                                  ←     ("done", result) | ("failed", error, traceback) | ("pruned",)

Processes are spawned: they import the functions and classes that the pickled job names.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from fxcompress.auto.jobs import Context, Job, Stopped
from fxcompress.errors import FxcompressError

PREFIX = "fxcompress-trial-"
START, EXIT = 600.0, 5.0
"""Seconds that a process has to start, and an idle one to exit."""
LOG = "log.txt"
"""What a trial prints, in its folder."""


@dataclass(frozen=True)
class Task:
    """A method of the job (``run``, ``baseline`` or ``warm_starts``), a trial's spec, and where."""

    method: str
    folder: Path
    dense: Path
    seed: int
    spec: dict[str, Any] | None = None
    reporting: bool = False


@dataclass(frozen=True)
class Event:
    """What a worker says: ``kind`` is ``report``, ``done``, ``failed`` or ``pruned``."""

    worker: Worker
    kind: str
    content: tuple[Any, ...]


class Worker:
    """A process and what it is doing."""

    def __init__(self, payload: bytes, environment: Mapping[str, str], threads: int) -> None:
        """A process with these variables and so many threads, started when there is something to do."""
        self._payload, self._environment, self._threads = payload, dict(environment), threads
        self._process: Any = None
        self._connection: Connection | None = None
        self.busy: Any = None
        """What the caller is running here."""
        self._deadline: float | None = None
        self._limit: float | None = None

    def submit(self, task: Task, busy: Any, time_limit: float | None = None) -> None:
        """Run ``task``, for at most ``time_limit`` seconds."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._connection is not None
        self.busy, self._limit = busy, time_limit
        self._deadline = time.monotonic() + START  # until it says that it has begun
        with contextlib.suppress(OSError):  # a process that is dead already is noticed by poll()
            self._connection.send(task)

    def answer(self, stop: bool) -> None:
        """Reply to a report."""
        assert self._connection is not None
        with contextlib.suppress(OSError):
            self._connection.send(stop)

    def poll(self) -> Event | None:
        """The next thing it says; a failure if it died or ran out of time."""
        assert self._connection is not None
        try:
            if self._connection.poll():
                kind, *content = self._connection.recv()
                if kind == "begun":
                    self._deadline = None if self._limit is None else time.monotonic() + self._limit
                    return None
                return Event(self, kind, tuple(content))
        except (EOFError, OSError):
            return Event(self, "failed", (self._died(), ""))
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.kill()
            limit = START if self._limit is None else self._limit
            return Event(self, "failed", (f"ran longer than the time limit of {limit:g} s", ""))
        return None

    def finish(self) -> Any:
        """Be free for another task; returns what it was busy with."""
        busy, self.busy, self._deadline = self.busy, None, None
        return busy

    def close(self) -> None:
        """End the process: by itself where it is idle, or else at once."""
        if self._process is not None and self.busy is None and self._connection is not None:
            self._connection.close()
            self._process.join(EXIT)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()

    @property
    def waitable(self) -> Connection:
        """Readable when there is something to ``poll``."""
        assert self._connection is not None
        return self._connection

    @property
    def seconds_left(self) -> float | None:
        """Until the time limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _died(self) -> str:
        self._process.join()
        code = self._process.exitcode
        self.kill()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"the worker process died ({how})"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(other, self._payload, self._environment, self._threads),
            name=f"{PREFIX}{secrets.token_hex(2)}",
            daemon=False,  # a daemon may have no children, and data loaders do
        )
        self._process.start()
        other.close()


def poll_any(workers: list[Worker], timeout: float) -> list[Event]:
    """What busy workers say within ``timeout`` seconds, or what becomes of them."""
    busy = [worker for worker in workers if worker.busy is not None]
    left = [worker.seconds_left for worker in busy]
    wait([w.waitable for w in busy], min([timeout, *(s for s in left if s is not None)]))
    return [event for worker in busy if (event := worker.poll()) is not None]


def refuse_inside_worker() -> None:
    """Raise where a worker imports a script that starts a search.

    Raises:
        FxcompressError: then, with the remedy.
    """
    if multiprocessing.current_process().name.startswith(PREFIX):
        raise FxcompressError(
            "a search was started while a worker process imports your script; put the call under "
            "if __name__ == '__main__':"
        )


def _serve(connection: Connection, payload: bytes, environment: dict[str, str], threads: int) -> None:
    """The worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task: Task = connection.recv()
            connection.send(("begun",))
            _print_to(task.folder / LOG)
            connection.send(_outcome(connection, payload, task))


def _outcome(connection: Connection, payload: bytes, task: Task) -> tuple[Any, ...]:
    def report(step: int, metric: float) -> bool:
        connection.send(("report", step, metric))
        return bool(connection.recv())

    try:
        job = _loaded(payload)
        torch.manual_seed(task.seed)
        random.seed(task.seed)
        context = Context(task.folder, task.dense, report if task.reporting else None)
        method = getattr(job, task.method)
        return "done", method(context) if task.spec is None else method(task.spec, context)
    except Stopped:
        return ("pruned",)
    except (EOFError, BrokenPipeError):
        raise
    except BaseException as error:
        words = " ".join(str(error).split())
        told = words if isinstance(error, FxcompressError) else f"{type(error).__name__}: {words}"
        return "failed", told, traceback.format_exc()
    finally:
        sys.stdout.flush()


def _print_to(file: Path) -> None:
    """Let this process, libraries included, write its output and warnings to ``file``."""
    with file.open("ab") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)


def _loaded(payload: bytes) -> Job:
    try:
        job: Job = pickle.loads(payload)  # made by our own parent process
    except Exception as error:
        raise FxcompressError(
            f"a worker process cannot load the model or the evaluator ({type(error).__name__}: {error}); "
            "their functions and classes have to be in a module that can be imported, not in a notebook"
        ) from error
    return job


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
