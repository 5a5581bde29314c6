"""A job whose trials do what their spec says, without any model: these tests are about processes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress.auto.artefact import MODULE, ONNX
from fxcompress.auto.driver import Driver
from fxcompress.auto.interface import Evaluator
from fxcompress.auto.jobs import RESULT, Context, Job, write_json
from fxcompress.auto.limits import COSTS, limits_of
from fxcompress.auto.options import make_options
from fxcompress.graph.module import CompiledModule

BEHAVIOURS = ("good", "raises", "hangs", "nan", "exits")


class StubJob(Job):
    """``spec``: ``x`` (the metric), ``behaviour``, ``seconds``. Every start of a trial leaves a file."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def model(self) -> nn.Module:
        """Unused."""
        raise NotImplementedError

    def evaluator(self) -> Evaluator:
        """Not a number."""
        return lambda module: float("nan")

    def example_inputs(self) -> Any:
        """Unused."""

    def compress(self, spec: dict[str, Any], context: Context) -> tuple[CompiledModule, list[dict[str, Any]]]:
        """Unused."""
        raise NotImplementedError

    def baseline(self, context: Context) -> dict[str, Any]:
        """Everything costs 1."""
        ones = dict.fromkeys(COSTS, 1.0)
        result = {"metric": 1.0, "measured": ones, "shares": ones}
        write_json(context.dense / RESULT, result)
        return result

    def run(self, spec: dict[str, Any], context: Context) -> dict[str, Any]:
        """Do what the spec says."""
        self.runs.mkdir(exist_ok=True)
        (self.runs / f"{context.folder.name} {os.getpid()}").touch()
        behaviour = spec["behaviour"]
        if behaviour == "raises":
            raise ValueError("the user's mistake")
        if behaviour == "hangs":
            time.sleep(1000)
        if behaviour == "nan":
            self.metric(nn.Identity())
        if behaviour == "exits":
            os._exit(7)
        for step in range(int(spec["seconds"] / 0.05)):
            time.sleep(0.05)
            if context.report is not None and context.report(step, spec["x"]):
                raise AssertionError("no pruner was asked for")
        for name in (MODULE, ONNX):
            (context.folder / name).write_text("model")
        costs = dict.fromkeys(COSTS, spec["x"])
        result = {"metric": spec["x"], "config_list": [], "spec": spec, "measured": costs, "shares": costs}
        write_json(context.folder / RESULT, result)
        return result


def propose(trial: Any, baseline: dict[str, Any]) -> dict[str, Any]:
    """Trials that take a while."""
    return {"x": trial.suggest_float("x", 0, 1), "behaviour": "good", "seconds": 0.5}


def propose_each(trial: Any, baseline: dict[str, Any]) -> dict[str, Any]:
    """Every behaviour in turn."""
    behaviour = BEHAVIOURS[trial.number % len(BEHAVIOURS)]
    return {"x": trial.suggest_float("x", 0, 1), "behaviour": behaviour, "seconds": 0.0}


def driver(folder: Path, propose: Any = propose, budget: Any = None, **options: Any) -> Driver:
    """A search of stubs in ``folder``."""
    settings = make_options({"folder": folder, "limits": limits_of(budget), **options})
    return Driver(StubJob(folder / "runs"), propose, "stub", settings)


def main() -> None:
    """``python -m tests.auto.stub folder trials workers storage``."""
    folder, trials, workers, storage = sys.argv[1:]
    options = {"trials": int(trials), "workers": int(workers), "storage": storage or None}
    driver(Path(folder), **options).run()


if __name__ == "__main__":
    main()
