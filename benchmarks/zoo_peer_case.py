"""One zoo model through Torch-Pruning: ``python -m benchmarks.zoo_peer_case OPTIONS RESULT_FILE``.

``zoo_peer.py`` runs this in a process per model and judges as ``zoo_case.py`` judges ours: the same layers,
sparsity, randomized parameters and statistics, tolerances, other batch size, training steps. *Exact* is
against the original with the removed channels zero (``removed_channels.py``), by the reading that is closer.
Every recipe of ``peer_recipe.py`` is tried until one is exact, and the best of them is the row.
"""

from __future__ import annotations

import copy
import json
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fxcompress
from benchmarks.peer_recipe import hints_of, pruner_of, step
from benchmarks.removed_channels import Float64, Masked, label, survivors
from benchmarks.results_file import write_json
from benchmarks.subject import (
    as_double,
    load_zoo,
    mirrored,
    one_more,
    output_layers,
    randomize,
    relative_error,
)
from benchmarks.zoo_case import Settings, training_obstacle, verdict
from fxcompress.graph.cost import count_parameters

PRUNE_LIMIT = 60.0
"""Seconds of processor time that building the graph and pruning may take."""


@dataclass
class PeerRow:
    """What became of one model; ``parameters`` before and after, of those that the output depends on."""

    name: str
    prunes: bool = False
    runs: bool = False
    exact: bool = False
    error64: float | None = None
    reading: str = ""
    sensitivity: float | None = None
    parameters: tuple[int, int] | None = None
    trains: bool | None = None
    recipe: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def rank(self) -> tuple[bool, bool, float]:
        """The better row of two recipes has the larger one."""
        share = 1 - self.parameters[1] / self.parameters[0] if self.parameters else 0.0
        return self.runs, self.exact, share


@dataclass(frozen=True)
class Subject:
    """A randomized model in float32, its inputs, another batch if it takes one, and its output layers."""

    name: str
    model: nn.Module
    example: tuple[Any, ...]
    other: tuple[Any, ...] | None
    outputs: tuple[str, ...]


def subject_of(
    name: str, build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], seed: int
) -> Subject:
    """Build and randomize as our side does; the output layers are found in our captured graph, for both."""
    torch.manual_seed(seed)
    model = build().eval()
    example = inputs()
    randomize(model, seed, example)
    captured = fxcompress.capture(model, example)
    other = one_more(example) if captured.batch_is_dynamic else None
    return Subject(name, model, example, other, output_layers(captured))


def best_row(subject: Subject, settings: Settings) -> PeerRow:
    """Try the recipes; never raises for what the tool or the model does."""
    rows: list[PeerRow] = []
    for recipe in hints_of(subject.model).recipes:
        rows.append(row_of(subject, recipe, settings))
        if rows[-1].exact or "TimeLimit" in rows[-1].obstacle:  # the graph is the same for every recipe
            break
    return max(rows, key=lambda row: row.rank)


def row_of(subject: Subject, recipe: str, settings: Settings) -> PeerRow:
    """One recipe on one model."""
    row = PeerRow(subject.name, recipe=recipe, parameters=(count_parameters(subject.model), 0))
    small = copy.deepcopy(subject.model)
    stage, start = "prune", time.perf_counter()
    try:
        with time_limit(PRUNE_LIMIT):
            pruner, hints = pruner_of(small, subject.example, subject.outputs, recipe, settings.sparsity)
            label(small)
            step(small, pruner, hints)
        del pruner
        left = survivors(small)
        row.prunes, row.seconds = True, {"prune": round(time.perf_counter() - start, 3)}
        stage = "run"
        used = sum(parameter.numel() for parameter in _used(small, subject.example))
        row.parameters = (count_parameters(subject.model), used)
        _check_shapes(subject, small)
        row.runs, stage = True, "float64"
        _check(row, subject, small, left)
    except (Exception, TimeLimit) as error:  # whatever the tool or its result raises is what the row records
        first = next(iter(str(error).strip().splitlines()), "")
        row.obstacle = f"{stage}: {type(error).__name__}: {first}"[:300]
        if not row.runs:
            row.parameters = None
    if row.runs and settings.train:
        found = _training(small, subject)
        row.trains = not found
        row.obstacle = row.obstacle or (f"train: {found}" if found else "")
    return row


class TimeLimit(BaseException):
    """Not an ``Exception``: a tool that catches those must not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimit`` after so much processor time, whatever else the machine does."""

    def stop(*_: Any) -> None:
        raise TimeLimit(f"not done after {seconds:g} s of processor time")

    previous = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)  # again, should a bare ``except`` swallow it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def _used(model: nn.Module, example: tuple[Any, ...]) -> list[nn.Parameter]:
    """Parameters that the output depends on: ours drops the others (auxiliary classifiers), too."""
    parameters = list(model.parameters())
    leaves = [y for y in tree_leaves(model(*example)) if isinstance(y, Tensor) and y.requires_grad]
    gradients = torch.autograd.grad([y.sum() for y in leaves], parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _check_shapes(subject: Subject, small: nn.Module) -> None:
    with torch.no_grad():
        before, after = (
            [tuple(y.shape) for y in tree_leaves(model(*subject.example)) if isinstance(y, Tensor)]
            for model in (subject.model, small)
        )
    if before != after:
        raise ValueError(f"outputs of shape {before} became {after}")


def _check(row: PeerRow, subject: Subject, small: nn.Module, left: dict[str, Tensor]) -> None:
    """Fill in exactness: the pruned model in float64 beside the masked one, at both batch sizes."""
    masked = Masked(subject.model, left)
    double = copy.deepcopy(small).double()
    batches = [as_double(inputs) for inputs in (subject.example, subject.other) if inputs is not None]
    with Float64(), torch.no_grad():
        got = [double(*inputs) for inputs in batches]
    for reading in ("zeros", "kept statistics"):
        expected = [masked(inputs, reading != "zeros") for inputs in batches]
        error = max(map(relative_error, expected, got))
        if row.error64 is None or error < row.error64:
            mirror = None if len(batches) > 1 else masked(mirrored(batches[0]), reading != "zeros")
            row.error64, row.reading = error, reading
            row.exact, row.sensitivity = verdict(expected, mirror, error)
        if row.exact:
            return
    row.obstacle = f"float64: relative error {row.error64:.1e}, sensitivity {row.sensitivity:.1e}"


def _training(small: nn.Module, subject: Subject) -> str:
    """Why three steps fail ("" if they do not): in train mode or, generously, in eval mode."""
    batch = subject.other if subject.other is not None else subject.example
    used = {id(parameter) for parameter in _used(small, subject.example)}
    for parameter in small.parameters():
        parameter.requires_grad_(id(parameter) in used)
    found = ""
    for mode in (True, False):
        try:
            found = training_obstacle(copy.deepcopy(small).train(mode), batch)
        except Exception as error:  # likewise
            found = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        if not found:
            return ""
    return found


def main(options: str, result: str) -> None:
    """Run the case that ``options`` (JSON: zoo, name, memory_gib, settings) names; its row to ``result``."""
    warnings.filterwarnings("ignore")
    torch.backends.mha.set_fastpath_enabled(False)  # its kernel would not see the norms of the masked model
    asked = json.loads(options)
    limit = int(asked["memory_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    name, settings = str(asked["name"]), Settings(**asked["settings"])
    for case, build, inputs in load_zoo(Path(asked["zoo"])).cases((name.partition("/")[0],)):
        if case == name:
            subject = subject_of(name, build, inputs, settings.seed)
            write_json(Path(result), asdict(best_row(subject, settings)))
            return
    raise LookupError(f"the zoo has no model named {name!r}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
