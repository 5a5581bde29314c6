"""What worker processes are asked to do. A job is pickled once, and unpickled anew for every trial."""

from __future__ import annotations

import json
import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress import places
from fxcompress.auto import artefact
from fxcompress.auto.interface import Evaluator
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.export.files import replacing
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule, eval_mode

RESULT = "result.json"


class Stopped(Exception):
    """An Optuna pruner gave the trial up."""


@dataclass(frozen=True)
class Context:
    """What surrounds a trial: its folder, that of the dense model, and where to report to.

    ``report(step, metric)`` says whether to stop; it is ``None`` where nobody wants to know.
    """

    folder: Path
    dense: Path
    report: Callable[[int, float], bool] | None = None


class Job(ABC):
    """A model, how it is evaluated, and what a trial does to it."""

    @abstractmethod
    def model(self) -> nn.Module:
        """The dense model."""

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """Its metric."""

    @abstractmethod
    def example_inputs(self) -> Any:
        """As for ``fxcompress.compile``."""

    @abstractmethod
    def compress(self, spec: dict[str, Any], context: Context) -> tuple[CompiledModule, list[dict[str, Any]]]:
        """The module that comes out of a trial, and the config list that made it."""

    def facts(self, dense: CompiledModule) -> dict[str, Any]:
        """More to know of the dense model before the search begins, as JSON."""
        return {}

    def run(self, spec: dict[str, Any], context: Context) -> dict[str, Any]:
        """One trial: compress, evaluate, write the files, measure them; the result is written last."""
        module, config_list = self.compress(spec, context)
        result: dict[str, Any] = {"metric": self.metric(module), "config_list": config_list, "spec": spec}
        artefact.write(module, context.folder)
        result |= artefact.measure(context.folder, context.dense)
        write_json(context.folder / RESULT, result)
        return result

    def baseline(self, context: Context) -> dict[str, Any]:
        """The dense model's files, metric and costs."""
        dense = capture(self.model(), self.example_inputs())
        result: dict[str, Any] = {"metric": self.metric(dense), **self.facts(dense)}
        artefact.write(dense, context.dense)
        result |= artefact.measure(context.dense, context.dense)
        write_json(context.dense / RESULT, result)
        return result

    def warm_starts(self, context: Context) -> list[dict[str, Any]]:
        """Parameters of trials to begin with."""
        return []

    def metric(self, module: nn.Module) -> float:
        """What the evaluator says of ``module`` in eval mode.

        Raises:
            FxcompressError: if that is no finite number.
        """
        with eval_mode(module):
            value = self.evaluator()(module)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise FxcompressError(f"the evaluator returned {value!r}; expected a finite number")
        return number

    def progress(self, module: nn.Module, step: int, context: Context) -> None:
        """Tell the metric after a step of training, where a pruner wants to know.

        Raises:
            Stopped: if the pruner gives the trial up.
        """
        if context.report is not None and context.report(step, self.metric(module)):
            raise Stopped


def pickled(job: Job) -> bytes:
    """The job as worker processes receive it.

    Raises:
        ConfigError: naming the part that cannot be sent.
    """
    for name, value in vars(job).items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise ConfigError(
                f"{name}: cannot be sent to worker processes ({type(error).__name__}: {error}); define its "
                "function or class at the top level of a module, not inside a function and not as a lambda, "
                "or give its place as 'package.module:name'"
            ) from error
    return pickle.dumps(job)


def resolve(reference: Any) -> Any:
    """What ``"package.module:name"`` stands for; anything but a string is returned as it is.

    Raises:
        FxcompressError: if it cannot be imported, saying why.
    """
    return places.resolve(reference) if isinstance(reference, str) else reference


def write_json(path: Path, value: Any) -> None:
    """Write ``value``, replacing the file at the end."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
