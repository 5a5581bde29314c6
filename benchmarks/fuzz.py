"""Run the laws of tests/laws.py over many random networks.

    python benchmarks/fuzz.py --count 2000 --seed 0 --out fuzz.json --failures failures

A long run may be made in parts: the record is written every few minutes, and ``--resume`` examines the
networks that failed once more, then goes on behind the last one until there are ``--count`` of them (each
part says at which commit it ran, and which failures of earlier parts it examined).

Network number i is a function of seed + i alone. Each runs in a worker process, so that a crash or a hang is
one failure and not the end. Every failure is reduced and written as a Python file that runs by itself.
Prints what the networks were made of and which operators with a rule never occurred; exits with
``GOAL_MISSED`` if any law failed.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `tests`, when run as a script

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.fuzz_record import Outcome, merged, show, summary_of, without_failures
from benchmarks.fuzz_record import markdown as markdown
from benchmarks.results_file import GOAL_MISSED, read_json, write_json
from fxcompress.graph.calls import Call, call_of
from fxcompress.rules.registry import rule_for, ruled_operators
from tests.comparing import run
from tests.generator import random_case, render
from tests.generator.pruning import KNOBS, random_pruning
from tests.generator.reduction import Case, reduce
from tests.generator.script import script
from tests.generator.spec import KNOB_TOP, random_spec
from tests.laws import LawFailure, Subject, Unsuited, check

CRASHED = "no answer"
SAVE_EVERY = 120.0  # seconds


def examine(seed: int, reduction_seconds: float) -> Outcome:
    """Check network `seed`; on failure reduce it and write the pasteable file into the outcome."""
    started = time.monotonic()
    try:
        network, pruning = random_case(seed)
        run(network.model(), network.inputs())
    except Exception as error:
        return Outcome(seed, "generator error", summary=f"{type(error).__name__}: {error}")
    verdict, law, summary, file = "passed", "", "", ""
    subject = Subject(network, pruning)
    try:
        check(subject)
    except Unsuited as reason:
        verdict, summary = "unsuited", str(reason)
    except LawFailure as failure:
        verdict = "failed"
        failure = _reduced(seed, failure, reduction_seconds)
        law, summary, file = failure.law, failure.summary, str(failure)
    seconds, calls = time.monotonic() - started, _calls(subject)
    names = frozenset(_operator(call) for call in calls)
    aten = [call for call in calls if isinstance(call.target, torch._ops.OpOverload)]
    frozen = frozenset(_operator(call) for call in aten if rule_for(call) is None)
    return Outcome(seed, verdict, law, summary, file, network.kinds, seconds, names, frozen)


def _calls(subject: Subject) -> list[Call]:
    """The operator calls of the compiled module, and of the compacted one if it was made; none where compile
    fails.
    """
    try:
        graphs = [subject.compiled.graph]
    except Exception:
        return []
    graphs += [module.graph for name, module in vars(subject).items() if name == "compacted"]
    found = [call_of(node) for graph in graphs for node in graph.nodes]
    return [call for call in found if call is not None]


def _operator(call: Call) -> str:
    """The ATen base name, with the overload where that has a rule of its own (`max.other`)."""
    name = f"{call.op}.{getattr(call.target, '_overloadname', '')}"
    return name if name in ruled_operators() else call.op


def _reduced(seed: int, failure: LawFailure, seconds: float) -> LawFailure:
    """The failure of the smallest case found that breaks the same law in the same way."""
    smallest, law, kind = failure, failure.law, type(failure.cause)

    def fails(case: Case) -> bool:
        nonlocal smallest
        try:
            network = render(case[0], seed)
            check(Subject(network, random_pruning(network, case[1])))
        except LawFailure as found:
            if found.law == law and type(found.cause) is kind:
                smallest = found
                return True
        except Unsuited:
            pass
        return False

    rng = random.Random(seed + 1)
    knobs = tuple(rng.randint(0, KNOB_TOP) for _ in range(KNOBS))
    reduce((random_spec(random.Random(seed)), knobs), fails, seconds)
    return smallest


def serve(pipe: Connection, reduction_seconds: float) -> None:
    """A worker: answers each seed with an outcome until the pipe closes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)  # the collector would take a tenth of the time
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        pipe.send(examine(seed, reduction_seconds))


class Worker:
    """One worker process with the seed it is busy with and when it must have answered."""

    def __init__(self, context: SpawnContext, limit: float, reduction_seconds: float) -> None:
        self.limit = limit
        self.pipe, far = context.Pipe()
        self.process: SpawnProcess = context.Process(target=serve, args=(far, reduction_seconds), daemon=True)
        self.process.start()
        far.close()
        self.seed = -1
        self.deadline = 0.0

    def give(self, seed: int) -> None:
        self.seed, self.deadline = seed, time.monotonic() + self.limit
        self.pipe.send(seed)

    def answer(self) -> Outcome | None:
        """The outcome; a failed one where the process died or is overdue; None while it is at work."""
        try:
            if self.pipe.poll():
                outcome = self.pipe.recv()
                if isinstance(outcome, Outcome):
                    return outcome
        except (EOFError, OSError):
            return self._lost(f"the process died with exit code {self.process.exitcode}")
        return self._lost(f"no answer in {self.limit:.0f} s") if time.monotonic() > self.deadline else None

    def _lost(self, how: str) -> Outcome:
        self.stop()
        network, pruning = random_case(self.seed)
        return Outcome(self.seed, "failed", CRASHED, how, script(network, pruning, how), network.kinds)

    def stop(self) -> None:
        self.pipe.close()  # an idle worker ends by itself
        self.process.join(timeout=0.5)
        self.process.terminate()
        self.process.join()


def outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """An outcome for each seed, in the order of completion, until the count or the time is used up."""
    context = multiprocessing.get_context("spawn")
    seeds = iter([*options.again, *range(options.seed, options.seed + options.count)])
    end = time.monotonic() + options.seconds if options.seconds else float("inf")

    def start(seed: int) -> Worker:
        worker = Worker(context, options.limit + options.reduce, options.reduce)
        worker.give(seed)
        return worker

    busy = [start(seed) for _, seed in zip(range(options.workers), seeds, strict=False)]
    try:
        while busy:
            wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in list(busy):
                outcome = worker.answer()
                if outcome is None:
                    continue
                yield outcome
                busy.remove(worker)
                seed = next(seeds, None) if time.monotonic() < end else None
                if seed is None:
                    worker.stop()
                elif outcome.law == CRASHED:
                    busy.append(start(seed))
                else:
                    worker.give(seed)
                    busy.append(worker)
    finally:
        for worker in busy:
            worker.stop()


def write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0, help="number of the first network")
    parser.add_argument("--seconds", type=float, default=0, help="start no further network after this long")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds after which one network counts as hung"
    )
    parser.add_argument(
        "--reduce", type=float, default=20, help="seconds spent on making one failure smaller"
    )
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    parser.add_argument("--resume", action="store_true", help="go on with the record in --out")
    parser.add_argument("--failures", type=Path, help="folder for one Python file per failure")
    return parser.parse_args(arguments)


def main() -> int:
    """Run; ``GOAL_MISSED`` where a law failed or the generator did, else 0."""
    options = parse_options()
    console, found, started = Console(), list[Outcome](), time.monotonic()
    old = read_json(options.out) if options.resume and options.out else {}
    options.again = [failure["seed"] for failure in old.get("failures", ())]
    if old:
        options.seed = max(part["last"] for part in old["parts"]) + 1
        options.count = max(options.count - old["networks"], 0)
        again = f"seeds {options.again} again, then" if options.again else "going on with"
        console.print(f"{old['networks']} networks are recorded; {again} seed {options.seed}")
        old = without_failures(old)
    saved = started
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("networks", total=options.count + len(options.again))
        for outcome in outcomes(options):
            found.append(outcome)
            failed = sum(o.verdict == "failed" for o in found)
            progress.update(task, advance=1, description=f"networks ({failed} failed)")
            if outcome.file and options.failures:
                write(
                    options.failures / f"{outcome.law.strip() or 'law'}_{outcome.seed}.py".replace(" ", "_"),
                    outcome.file,
                )
            if options.out and time.monotonic() - saved > SAVE_EVERY:
                write_json(
                    options.out, merged(old, summary_of(found, time.monotonic() - started, options.again))
                )
                saved = time.monotonic()
    record = merged(old, summary_of(found, time.monotonic() - started, options.again))
    if options.out:
        write_json(options.out, record)
    show(console, found, record)
    failed = any(verdict in ("failed", "generator error") for verdict in record["verdicts"])
    return GOAL_MISSED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
