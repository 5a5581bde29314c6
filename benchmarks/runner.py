"""Runs benchmarks one after another, each in a process of its own, and keeps what became of each.

    PLAN  →  results/<name>.json      the record, moved there when it is whole, with when and of which commit
          →  results/run.json         status, seconds and arguments of all, after every one
          →  results/logs/<name>.log  what it printed

One at a time and on one thread: timings must not disturb each other. A benchmark that fails, hangs or is
interrupted leaves the record of the last run where it is, and the others run all the same.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.plan import Benchmark
from benchmarks.results_file import GOAL_MISSED, ROOT, commit, is_clean, machine_facts, read_json, write_json

DONE, MISSED, FAILED, HUNG = "done", "done, goal missed", "failed", "over its time limit"
SKIPPED, INTERRUPTED = "skipped", "interrupted"
FINISHED = (DONE, MISSED)
LAST_LINES = 5
PATIENCE, SPARE = 4.0, 120.0
"""Times the minutes that the plan says, and seconds more: then a benchmark counts as hung."""
RUN, LOGS = "run.json", "logs"


@dataclass(frozen=True)
class Options:
    """Where records go, where the public models are, and how long to wait."""

    out: Path
    zoo: Path
    resume: bool = False
    patience: float = PATIENCE


@dataclass
class Entry:
    """What became of one benchmark. ``seconds`` on the clock, ``processor`` those of the processor."""

    status: str
    reason: str = ""
    seconds: float = 0.0
    processor: float = 0.0
    arguments: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


class Run:
    """One run of a plan, on record after every benchmark.

    Raises:
        ValueError: if it is to resume a run of another commit: ratios of one page are of one run.
    """

    def __init__(self, plan: Sequence[Benchmark], options: Options, console: Console) -> None:
        self.plan, self.options, self.console = plan, options, console
        self.entries: dict[str, Entry] = {}
        self.facts: dict[str, Any] = {
            "started": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "commit": commit(),
            "clean": is_clean(),
            "machine": machine_facts() | {"threads": 1},
        }
        old = read_json(options.out / RUN) if options.resume else {}
        if old:
            if (old["commit"], old["clean"]) != (self.facts["commit"], self.facts["clean"]):
                raise ValueError(
                    f"--resume: {RUN} is a run of commit {_state(old)}, and this is {_state(self.facts)}; "
                    "check that one out, or start anew without --resume"
                )
            self.facts = {key: old[key] for key in self.facts}
            self.entries = {name: Entry(**entry) for name, entry in old["benchmarks"].items()}

    def __call__(self) -> int:
        """Run what is left; 1 if any failed, 130 if interrupted, else 0."""
        left = [b for b in self.plan if not self._is_finished(b.name)]
        for number, benchmark in enumerate(left, 1):
            head = f"[{number}/{len(left)}] {benchmark.name}"
            obstacles = list(benchmark.obstacles(self.options.zoo))
            if obstacles:
                entry = Entry(SKIPPED, f"needs {', '.join(obstacles)}")
            else:
                self._print(f"{head}: about {benchmark.minutes:g} min on a quiet machine …")
                entry = self._process(benchmark, head)
            self.entries[benchmark.name] = entry
            self._write()
            self._print(f"{head}: {_told(entry)}")
            if entry.status == FAILED:
                self._print(self._last_lines(benchmark.name))
            if entry.status == INTERRUPTED:
                self._print("stopped; --resume goes on from here")
                return 130
        return self._closing()

    def _is_finished(self, name: str) -> bool:
        return name in self.entries and self.entries[name].status in FINISHED

    def _process(self, benchmark: Benchmark, head: str) -> Entry:
        """Run one; its record moves into place if it is whole."""
        out = self.options.out
        log = out / LOGS / f"{benchmark.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        limit = 60 * self.options.patience * benchmark.minutes + SPARE
        started, processor = time.monotonic(), _children()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            record = Path(folder) / f"{benchmark.name}.json"
            command = [sys.executable, "-m", benchmark.runs, *benchmark.arguments]
            command += [benchmark.output, str(record)]
            if benchmark.zoo:
                command += ["--zoo", str(self.options.zoo.resolve())]
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            shown = self.console.is_terminal
            with Progress(*columns, console=self.console, transient=True, disable=not shown) as progress:
                progress.add_task(head, total=None)
                status, reason = _wait(command, log, limit, folder)
            written = read_json(record)
        if status in FINISHED and not written:
            status, reason = FAILED, "it wrote no record"
        entry = Entry(status, reason, arguments=list(benchmark.arguments))
        entry.seconds = round(time.monotonic() - started, 1)
        entry.processor = round(_children() - processor, 1)
        entry.absent = [str(peer) for peer in benchmark.peers if peer.missing]
        if status in FINISHED:
            write_json(out / f"{benchmark.name}.json", written | {"run": self._provenance(entry)})
        return entry

    def _provenance(self, entry: Entry) -> dict[str, Any]:
        facts = {key: self.facts[key] for key in ("started", "commit", "clean")}
        return facts | {"seconds": entry.seconds, "arguments": entry.arguments}

    def _write(self) -> None:
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        write_json(self.options.out / RUN, self.facts | {"minutes": self._minutes(), "benchmarks": entries})

    def _minutes(self) -> float:
        return round(sum(entry.seconds for entry in self.entries.values()) / 60, 1)

    def _closing(self) -> int:
        """Name what is not there, and why."""
        for status in (SKIPPED, MISSED, FAILED, HUNG):
            named = {name: entry for name, entry in self.entries.items() if entry.status == status}
            for name, entry in named.items():
                self._print(f"{status}: {name}{': ' if entry.reason else ''}{entry.reason}")
        self._print(f"{self._minutes()} min in all; logs are in {self.options.out / LOGS}")
        return int(any(entry.status in (FAILED, HUNG) for entry in self.entries.values()))

    def _last_lines(self, name: str) -> str:
        """Of the log: paths in it are those of this machine, so they are no part of the record."""
        text = (self.options.out / LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(f"    {line}" for line in text.strip().splitlines()[-LAST_LINES:])

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _wait(command: Sequence[str], log: Path, limit: float, folder: str) -> tuple[str, str]:
    """Run the command in ``folder``, with its temporary files there, output to ``log``; its status, and why.

    It gets a session of its own: Ctrl-C reaches this process alone, which then ends the command with all
    processes it started.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TMPDIR": folder}
    with log.open("wb") as printed:
        process = subprocess.Popen(
            command, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True, cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return HUNG, f"not done after {limit / 60:.1f} min"
        except KeyboardInterrupt:
            return INTERRUPTED, "Ctrl-C"
        finally:
            _end(process)
    if code in (0, GOAL_MISSED):
        return (DONE if code == 0 else MISSED), ""
    return FAILED, f"exit status {code}, see {LOGS}/{log.name}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those it started, if they are still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _children() -> float:
    """Processor seconds of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(entry: Entry) -> str:
    took = f" in {entry.seconds:.0f} s ({entry.processor:.0f} s of the processor)" if entry.seconds else ""
    absent = f"; without {', '.join(entry.absent)}" if entry.absent else ""
    return f"{entry.status}{took}{': ' if entry.reason else ''}{entry.reason}{absent}"


def _state(facts: Mapping[str, Any]) -> str:
    return f"{facts['commit'] or '(unknown)'}{'' if facts['clean'] else ' with changes'}"
