"""One zoo model through capture, masks and speedup: ``python -m benchmarks.zoo_case OPTIONS RESULT_FILE``.

``benchmarks/zoo.py`` runs this in a process per model, so that a crash, a hang or a memory peak is one row.
"""

from __future__ import annotations

import gc
import json
import resource
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
from benchmarks.results_file import write_json
from benchmarks.subject import (
    as_double,
    config_for,
    load_zoo,
    mirrored,
    one_more,
    randomize,
    relative_error,
    sensitivity,
)
from fxcompress.graph.cost import count_macs, count_parameters
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.precision import float64_copy

EXACT64 = 1e-9
EXACT32 = 1e-4
SENSITIVE = 1e-8
"""Outputs that change less than this (relatively) with the input would be reproduced by a wrong model too.
Above it, the error must be small against that change: at most ``EXACT64`` times it, or ``ROUNDING``."""
ROUNDING = 16 * sys.float_info.epsilon
"""What two orders of the same float64 operations may differ by: less than a millionth of ``SENSITIVE``."""


@dataclass(frozen=True)
class Settings:
    """What was asked of every model; rows of other settings are not comparable."""

    sparsity: float = 0.5
    per_layer: bool = False
    train: bool = False
    seed: int = 0


@dataclass
class Row:
    """What happened to one model. Errors are relative; ``None`` means the case did not get that far."""

    name: str
    captured: bool = False
    exact: bool = False
    error64: float | None = None
    error64_other_batch: float | None = None
    error32: float | None = None
    sensitivity: float | None = None
    parameters: tuple[int, int] | None = None
    macs: tuple[int, int] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: int | None = None
    kept: int | None = None
    kept_reasons: list[str] = field(default_factory=list)
    trains: bool | None = None
    obstacle: str = ""
    peak_mib: int | None = None


class Stopped(Exception):
    """The case met an obstacle that its row records."""


@contextmanager
def _stage(row: Row, name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    except Stopped:
        raise
    except Exception as error:  # an obstacle of any kind is what the runner is there to record
        first_line = next(iter(str(error).strip().splitlines()), "")
        row.obstacle = f"{name}: {type(error).__name__}: {first_line}"[:300]
        raise Stopped from error
    finally:
        row.seconds[name] = round(row.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def run_case(
    name: str, build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], settings: Settings
) -> Row:
    """Take one model through the whole path; never raises for what the model or the compiler does."""
    row = Row(name)
    try:
        with _stage(row, "total"):
            _run(row, build, inputs, settings)
    except Stopped:
        pass
    row.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def _run(
    row: Row, build: Callable[[], nn.Module], inputs: Callable[[], tuple[Any, ...]], settings: Settings
) -> None:
    with _stage(row, "build"):
        torch.manual_seed(settings.seed)
        model = build().eval()
        example = inputs()
        randomize(model, settings.seed, example)
    masked, batch_is_dynamic = _insert(row, model, example, settings)
    del model
    small: nn.Module = _speed_up32(row, masked, example)
    if not settings.train:
        small = nn.Identity()  # a big model's memory is needed now
    with _stage(row, "float64"), torch.no_grad():
        double = float64_copy(masked)
        del masked
        gc.collect()
        _check_float64(row, double, as_double(example), batch_is_dynamic)
        del double
    if settings.train:
        with _stage(row, "train"):
            found = training_obstacle(small.train(), one_more(example) if batch_is_dynamic else example)
            row.trains = not found
            row.obstacle = row.obstacle or (f"train: {found}" if found else "")


def _insert(
    row: Row, model: nn.Module, example: tuple[Any, ...], settings: Settings
) -> tuple[CompiledModule, bool]:
    """Capture and mask the model; returns the masked module and whether its batch is dynamic."""
    with _stage(row, "count"):
        macs = count_macs(model, example).total
        row.parameters, row.macs = (count_parameters(model), 0), (macs, 0)
    with _stage(row, "capture"):
        captured = fxcompress.capture(model, example)
    row.captured, row.nodes = True, len(captured.graph.nodes)
    with _stage(row, "insert"):
        config = config_for(captured, settings.sparsity)
        masked = fxcompress.compile(captured, config, example, dependency_aware=not settings.per_layer)
    return masked, captured.batch_is_dynamic


def _speed_up32(row: Row, masked: CompiledModule, example: tuple[Any, ...]) -> nn.Module:
    """Speed up in the model's own precision: sizes, seconds and the float32 error come from here."""
    with _stage(row, "speedup"), torch.no_grad():
        small = fxcompress.speedup(masked, example, verify=False)
    with _stage(row, "float32"), torch.no_grad():
        row.error32 = relative_error(masked(*example), small(*example))
    with _stage(row, "count"):
        before, macs = (row.parameters or (0, 0))[0], (row.macs or (0, 0))[0]
        row.parameters = (before, count_parameters(small))
        row.macs = (macs, count_macs(small, example).total)
    row.kept = len(small.report.kept)
    row.kept_reasons = [f"{kept.node}: {kept.reason}"[:200] for kept in small.report.kept[:3]]
    return small


def _check_float64(
    row: Row, masked: CompiledModule, example: tuple[Any, ...], batch_is_dynamic: bool
) -> None:
    batches = [example, one_more(example)] if batch_is_dynamic else [example]
    expected = [masked(*inputs) for inputs in batches]
    mirror = None if batch_is_dynamic else masked(*mirrored(example))
    small = fxcompress.speedup(masked, example, verify=False)
    errors = [relative_error(old, small(*inputs)) for old, inputs in zip(expected, batches, strict=True)]
    row.error64, row.error64_other_batch = errors[0], errors[1] if batch_is_dynamic else None
    row.exact, row.sensitivity = verdict(expected, mirror, max(errors))
    if not row.exact:
        row.obstacle = f"float64: relative error {max(errors):.1e}, sensitivity {row.sensitivity:.1e}"


def verdict(expected: list[Any], mirror: Any, error: float) -> tuple[bool, float]:
    """Whether a relative ``error`` in float64 is exact, and how much the outputs depend on the input.

    ``expected`` are the outputs at the example's batch size and, where that is dynamic, at one more; if not,
    ``mirror`` are those of the mirrored example.
    """
    sensitive = sensitivity(expected[1]) if len(expected) > 1 else relative_error(expected[0], mirror)
    allowed = max(EXACT64 * min(1.0, sensitive), ROUNDING)
    return sensitive >= SENSITIVE and error <= allowed, sensitive


def training_obstacle(small: nn.Module, example: tuple[Any, ...]) -> str:
    """Why three SGD steps do not stay finite, with a finite gradient for every parameter; "" if they do."""
    parameters = {name: p for name, p in small.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-5)
    for _ in range(3):
        optimizer.zero_grad()
        loss = _loss(small(*example))
        loss.backward()
        bad = [name for name, p in parameters.items() if p.grad is None or not bool(p.grad.isfinite().all())]
        if bad or not bool(loss.isfinite()):
            return f"no finite gradient for {bad[0] if bad else 'the loss'}"
        optimizer.step()
    return ""


def _loss(outputs: Any) -> Tensor:
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    return torch.stack([(y / y.detach().abs().max().clamp_min(1e-12)).square().mean() for y in leaves]).sum()


def main(options: str, result: str) -> None:
    """Run the case that ``options`` (JSON: zoo, name, memory_gib, settings) names; its row to ``result``."""
    warnings.filterwarnings("ignore")
    asked = json.loads(options)
    limit = int(asked["memory_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    name = str(asked["name"])
    zoo = load_zoo(Path(asked["zoo"]))
    for case, build, inputs in zoo.cases((name.partition("/")[0],)):
        if case == name:
            write_json(Path(result), asdict(run_case(name, build, inputs, Settings(**asked["settings"]))))
            return
    raise LookupError(f"the zoo has no model named {name!r}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
