"""How long the compiler itself takes: capture, compile (capture + masks), speedup, all with verification.

    python benchmarks/compiler_speed.py [--quick]

Over public convnets and over chains of convolutions of growing length and width; the law is that seconds
grow linearly with the number of nodes and no faster than the weights with the width. Beside it
Torch-Pruning's dependency graph and pruning of the same fraction, where that is installed
(``pip install --no-deps torch-pruning``). Seconds are the processor's, on one thread, the least of the
repeats.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxcompress
from benchmarks.results_file import RESULTS, machine_facts, write_json
from benchmarks.subject import config_for, load_zoo
from benchmarks.tables import markdown_table

MODELS = tuple(f"tv/resnet{depth}" for depth in (18, 34, 50, 101, 152)) + ("tv/densenet121", "tv/densenet201")
LENGTHS = (10, 50, 100, 200, 400, 800)
WIDTHS = (64, 256, 512, 1024)


@dataclass(frozen=True)
class Timing:
    """Seconds per phase, the best of the repeats; ``torch_pruning`` is ``None`` if it is absent or fails.

    ``speedup`` is without verification and from a captured graph, ``full`` is compile and a verified speedup.
    """

    model: str
    nodes: int
    parameters: int
    capture: float
    compile: float
    speedup: float
    full: float
    torch_pruning: float | None

    @property
    def per_node(self) -> float:
        """Milliseconds of speedup per graph node."""
        return 1e3 * self.speedup / self.nodes

    @property
    def ratio(self) -> float | None:
        """Torch-Pruning's seconds over those of ``speedup``."""
        return None if self.torch_pruning is None else self.torch_pruning / self.speedup


def conv_chain(length: int, width: int) -> nn.Module:
    """``length`` times Conv-BatchNorm-ReLU of ``width`` channels, then a classifier."""
    blocks: list[nn.Module] = []
    for index in range(length):
        blocks += [
            nn.Conv2d(3 if index == 0 else width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def chain_name(length: int, width: int) -> str:
    """The row of ``conv_chain(length, width)``."""
    return f"chain of {length}, width {width}"


def subjects(zoo: Path, quick: bool) -> Iterator[tuple[str, Callable[[], nn.Module], Tensor]]:
    """Yield name, builder and example image batch of everything to time."""
    small = torch.randn(2, 3, 16, 16)
    for length in LENGTHS[:3] if quick else LENGTHS:
        yield chain_name(length, 64), partial(conv_chain, length, 64), small
    for width in WIDTHS[1:2] if quick else WIDTHS[1:]:
        yield chain_name(10, width), partial(conv_chain, 10, width), small
    for name, build, inputs in load_zoo(zoo).cases(("tv",)):
        if name in (MODELS[:1] if quick else MODELS):
            yield name, build, inputs()[0]


def seconds(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the least seconds of ``repeats`` calls and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        result = function()
        best = min(best, time.process_time() - start)
    return best, result


def time_compiler(name: str, build: Callable[[], nn.Module], images: Tensor, repeats: int) -> Timing:
    """Time every phase on one model."""
    torch.manual_seed(0)
    model = build()
    capturing, captured = seconds(lambda: fxcompress.capture(model, (images,)), repeats)
    config = config_for(captured, 0.5)
    compiling, masked = seconds(lambda: fxcompress.compile(model, config, (images,)), repeats)
    speeding, _ = seconds(lambda: fxcompress.speedup(masked, (images,), verify=False), repeats)
    verified, _ = seconds(lambda: fxcompress.speedup(masked, (images,)), 1)
    return Timing(
        model=name,
        nodes=len(captured.graph.nodes),
        parameters=sum(p.numel() for p in model.parameters()),
        capture=capturing,
        compile=compiling,
        speedup=speeding,
        full=compiling + verified,
        torch_pruning=time_torch_pruning(model, images, repeats),
    )


def time_torch_pruning(model: nn.Module, images: Tensor, repeats: int) -> float | None:
    """Time Torch-Pruning's graph building and pruning; ``None`` if it is absent or fails."""
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    pruning: Any = importlib.import_module("torch_pruning")
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]

    def build_and_prune(twin: nn.Module, ignored: list[nn.Module]) -> None:
        importance = pruning.importance.MagnitudeImportance(p=1)
        pruning.pruner.MagnitudePruner(
            twin, images, importance=importance, pruning_ratio=0.5, ignored_layers=ignored
        ).step()

    times = []
    for _ in range(repeats):
        memo: dict[int, Any] = {}
        twin = copy.deepcopy(model, memo)
        try:
            times.append(seconds(partial(build_and_prune, twin, [memo[id(layer)] for layer in last]), 1)[0])
        except Exception:  # a model that the other tool cannot prune has no time to show
            return None
    return min(times)


def summary_of(timings: Sequence[Timing]) -> dict[str, Any]:
    """Torch-Pruning's seconds over those of speedup, least and by model, and how speedup's grow.

    Growth is the exponent that fits seconds best between the shortest and the longest chain of one width
    (1 is linear), and between the narrowest and the widest one of one length.
    """
    ratios = {t.model: round(t.ratio, 2) for t in timings if t.ratio is not None}
    named = {t.model: t for t in timings}
    long = [named[n] for n in (chain_name(length, 64) for length in LENGTHS) if n in named]
    wide = [named[n] for n in (chain_name(10, width) for width in WIDTHS) if n in named]
    return {
        "Torch-Pruning / speedup": ratios,
        "least": min(ratios.items(), key=lambda pair: pair[1], default=None),
        "growth in nodes": growth(long, lambda t: t.nodes),
        "growth in parameters": growth(wide, lambda t: t.parameters),
    }


def growth(timings: Sequence[Timing], size: Callable[[Timing], int]) -> float | None:
    """The exponent ``e`` of ``speedup ~ size^e`` between the first and the last."""
    if len(timings) < 2:
        return None
    first, last = timings[0], timings[-1]
    return round(math.log(last.speedup / first.speedup) / math.log(size(last) / size(first)), 3)


def table_of(timings: Sequence[Timing]) -> Table:
    """One line per model, in seconds."""
    table = Table(box=None, pad_edge=False)
    phases = ("capture", "compile", "speedup", "full", "ms per node")
    for column in ("model", "nodes", *phases, "Torch-Pruning", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for item in timings:
        own = (item.capture, item.compile, item.speedup, item.full, item.per_node)
        cells = ["" if value is None else f"{value:.2f}" for value in (*own, item.torch_pruning, item.ratio)]
        table.add_row(item.model, str(item.nodes), *cells)
    return table


def timings_of(record: dict[str, Any]) -> list[Timing]:
    """The rows of a record."""
    known = [field.name for field in fields(Timing)]
    return [Timing(**{name: row[name] for name in known}) for row in record["rows"]]


def markdown(record: dict[str, Any]) -> str:
    """Seconds by model, and how they grow; ratio: Torch-Pruning's seconds over those of ``speedup``."""
    facts = record["summary"]
    grown = {"nodes": facts["growth in nodes"], "parameters": facts["growth in parameters"]}
    text = ", ".join(f"{what}^{value:.2f}" for what, value in grown.items() if value is not None)
    return (
        "*ratio*: Torch-Pruning's seconds over those of speedup; empty where it is absent or fails.\n\n"
        f"{markdown_table(table_of(timings_of(record)))}\n\nSeconds of speedup grow like {text}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, print, record."""
    parser = argparse.ArgumentParser(prog="compiler_speed.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--quick", action="store_true", help="the small ones only")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="more only on cores of your own")
    parser.add_argument("--json", type=Path, default=RESULTS / "compiler_speed.json")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    console = Console(width=110, highlight=False)
    timings = []
    for name, build, images in subjects(options.zoo, options.quick):
        timings.append(time_compiler(name, build, images, options.repeats))
        rows = [asdict(item) | {"per_node_ms": item.per_node} for item in timings]
        record = {"benchmark": "compiler_speed", "machine": machine_facts(), "summary": summary_of(timings)}
        write_json(options.json, record | {"rows": rows})
        console.print(f"{name}: speedup {timings[-1].speedup:.2f} s", markup=False)
    console.print(table_of(timings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
