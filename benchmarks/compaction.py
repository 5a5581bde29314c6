"""When compacting one layer pays: gather and scatter against the multiply-accumulates (MACs) they save.

    python benchmarks/compaction.py [--rounds 15]

For convolutions and linear layers of common sizes, at several kept fractions, the time of the whole layer
against that of the small one behind a gather, before a scatter, or both (`passes/compact.py`). A layer is
compacted where

    MACs saved  >  a · elements moved + b · calls inserted + c · MACs of the whole layer        (per example)

and `a`, `b`, `c` are those of a grid for which the layers together take least time, each relative to the
faster of its two forms. `COSTS` in `passes/compact.py` holds them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.results_file import RESULTS, machine_facts, write_json
from benchmarks.tables import markdown_table, pairs_table
from fxcompress import ops
from fxcompress.graph.cost import compare_latency
from fxcompress.passes.compact import Costs

CONVOLUTIONS = (
    # kernel, inputs, outputs, pixels
    (3, 16, 16, 32), (3, 32, 32, 16), (3, 64, 64, 8), (3, 64, 64, 56), (3, 128, 128, 28), (3, 256, 256, 14),
    (3, 512, 512, 7), (1, 16, 64, 32), (1, 64, 16, 32), (1, 64, 64, 56), (1, 64, 256, 56), (1, 256, 64, 56),
    (1, 128, 512, 28), (1, 512, 128, 28), (1, 1024, 256, 14), (1, 512, 2048, 7),
)  # fmt: skip
LINEARS = (
    # tokens, inputs, outputs
    (1, 64, 64), (1, 512, 1000), (1, 2048, 1000), (64, 128, 128), (128, 384, 384), (128, 384, 1536),
    (197, 768, 768), (197, 3072, 768),
)  # fmt: skip
BATCHES = (1, 8)
KEPT = (0.25, 0.5, 0.7, 0.8, 0.9)
PER_ELEMENT = (0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 70.0, 100.0, 150.0, 200.0, 300.0)
PER_CALL = (0.0, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6)
SHARE = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SLOWEST = 2.0
"""Ratios above are taken as this: one disturbed measurement is not to decide."""


@dataclass(frozen=True)
class Shape:
    """A layer: its name, its MACs for each pair of channels and its positions, per example."""

    name: str
    inputs: int
    outputs: int
    positions: int
    taps: int

    def layer(self, inputs: int, outputs: int) -> nn.Module:
        """The layer at other widths."""
        if self.name.startswith("linear"):
            return nn.Linear(inputs, outputs)
        kernel = int(self.taps**0.5)
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    def input(self, batch: int) -> tuple[Tensor, int]:
        """A random input and the dimension of its channels."""
        if self.name.startswith("linear"):
            tokens = (batch, self.positions) if self.positions > 1 else (batch,)
            return torch.randn(*tokens, self.inputs), len(tokens)
        pixels = int(self.positions**0.5)
        return torch.randn(batch, self.inputs, pixels, pixels), 1


@dataclass(frozen=True)
class Case:
    """One measurement; MACs, elements and calls are per example, ``ratio`` is compacted / whole time."""

    layer: str
    batch: int
    side: str
    kept: float
    macs: int
    saved: int
    moved: int
    calls: int
    ratio: float

    def pays(self, costs: Costs) -> bool:
        """What the model says."""
        moving = costs.per_element * self.moved + costs.per_call * self.calls
        return self.saved > moving + costs.share * self.macs

    def regret(self, costs: Costs) -> float:
        """Time lost by following the model, relative to the faster form."""
        ratio = min(self.ratio, SLOWEST)
        return (ratio if self.pays(costs) else 1.0) / min(ratio, 1.0) - 1.0


def shapes() -> Iterator[Shape]:
    """Every layer that is measured."""
    for kernel, inputs, outputs, pixels in CONVOLUTIONS:
        yield Shape(f"conv {kernel}x{kernel}, {pixels} px", inputs, outputs, pixels**2, kernel**2)
    for tokens, inputs, outputs in LINEARS:
        yield Shape(f"linear, {tokens} tokens", inputs, outputs, tokens, 1)


def compacted(shape: Shape, dim: int, inputs: int, outputs: int) -> Callable[[Tensor], Tensor]:
    """The small layer behind a gather if it has fewer inputs, before a scatter if it has fewer outputs."""
    layer = shape.layer(inputs, outputs)
    read, made = (
        torch.randperm(n)[:k].sort().values for n, k in ((shape.inputs, inputs), (shape.outputs, outputs))
    )
    rest = torch.randn(shape.outputs)

    def forward(x: Tensor) -> Tensor:
        x = ops.gather_channels(x, read, dim) if inputs < shape.inputs else x
        y: Tensor = layer(x)
        return ops.scatter_channels(y, made, rest, dim) if outputs < shape.outputs else y

    return forward


def measure(shape: Shape, batch: int, rounds: int) -> Iterator[Case]:
    """All sides and fractions of one layer, interleaved with the whole layer."""
    x, dim = shape.input(batch)
    candidates: dict[tuple[str, float], Callable[[Tensor], Tensor]] = {}
    facts: dict[tuple[str, float], tuple[int, int, int, int]] = {}
    per_pair = shape.positions * shape.taps
    for side, kept in itertools.product(("gather", "scatter", "both"), KEPT):
        inputs = shape.inputs if side == "scatter" else max(int(kept * shape.inputs), 1)
        outputs = shape.outputs if side == "gather" else max(int(kept * shape.outputs), 1)
        candidates[side, kept] = compacted(shape, dim, inputs, outputs)
        macs = per_pair * shape.inputs * shape.outputs
        gathered, scattered = side != "scatter", side != "gather"
        moved = shape.positions * (inputs * gathered + shape.outputs * scattered)
        facts[side, kept] = (macs, macs - per_pair * inputs * outputs, moved, gathered + scattered)
    calls = {f"{side} {kept}": partial(function, x) for (side, kept), function in candidates.items()}
    with torch.no_grad():
        seconds = compare_latency(
            {"whole": partial(shape.layer(shape.inputs, shape.outputs), x), **calls}, rounds=rounds
        )
    name = f"{shape.name}, {shape.inputs} to {shape.outputs}"
    for side, kept in candidates:
        ratio = seconds[f"{side} {kept}"].ratio_to(seconds["whole"])
        yield Case(name, batch, side, kept, *facts[side, kept], round(ratio, 4))


def fit(cases: Sequence[Case]) -> Costs:
    """The costs with the least mean regret; of equals the larger ones, which compact less."""

    def loss(costs: Costs) -> tuple[float, float, float, float]:
        return _mean_regret(cases, costs), -costs.per_element, -costs.per_call, -costs.share

    return min(itertools.starmap(Costs, itertools.product(PER_ELEMENT, PER_CALL, SHARE)), key=loss)


def _mean_regret(cases: Sequence[Case], costs: Costs) -> float:
    return round(statistics.fmean(case.regret(costs) for case in cases), 4)


def summary(cases: Sequence[Case], costs: Costs) -> dict[str, float]:
    """How good the choices of the model are."""
    ratios = [case.ratio for case in cases if case.pays(costs)]
    return {
        "mean regret": _mean_regret(cases, costs),
        "mean regret, never compacting": _mean_regret(cases, Costs(math.inf, math.inf, math.inf)),
        "mean regret, always compacting": _mean_regret(cases, Costs(0.0, 0.0, 0.0)),
        "layers": len(cases),
        "compacted": len(ratios),
        "of these slower by 5 %": sum(ratio > 1.05 for ratio in ratios),
        "median ratio of these": round(statistics.median(ratios), 4) if ratios else 1.0,
    }


def table_of(cases: Sequence[Case], costs: Costs) -> Table:
    """Ratios by layer and side, at the kept fractions; ``*`` where the model compacts."""
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "batch", "side", *(f"kept {kept}" for kept in KEPT)):
        table.add_column(column, justify="left" if column in ("layer", "side") else "right")
    for (layer, batch, side), group in itertools.groupby(cases, key=lambda c: (c.layer, c.batch, c.side)):
        table.add_row(
            layer, str(batch), side, *(f"{c.ratio:.2f}{'*' if c.pays(costs) else ' '}" for c in group)
        )
    return table


def markdown(record: dict[str, Any]) -> str:
    """The costs found and how good the choices made by them are; the ratios are in the record."""
    a, b, c = (record["costs"][key] for key in ("per_element", "per_call", "share"))
    return f"a = {a:g}, b = {b:g}, c = {c:g}\n\n{markdown_table(pairs_table(record['summary']))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, fit, print, record."""
    parser = argparse.ArgumentParser(prog="compaction.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="more only on cores of your own")
    parser.add_argument("--json", type=Path, default=RESULTS / "compaction.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases = [case for s in shapes() for batch in BATCHES for case in measure(s, batch, options.rounds)]
    costs = fit(cases)
    console = Console(width=110, highlight=False)
    console.print(table_of(cases, costs))
    console.print({**asdict(costs), **summary(cases, costs)})
    write_json(
        options.json,
        {
            "benchmark": "compaction",
            "machine": machine_facts(),
            "costs": asdict(costs),
            "summary": summary(cases, costs),
            "rows": [asdict(case) for case in cases],
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
