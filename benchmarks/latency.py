"""What masks cost in training and what the speedup gains in inference, on ResNet-50.

    python benchmarks/latency.py [--rounds 20] [--pixels 224]

Three comparisons, each interleaved in one process so that the ratio holds on a shared machine:

forward    the 50 %-pruned model / torchvision's own ResNet-50 built directly at those widths (goal: <= 1.05)
step       one masked training step / one dense training step, batch 8                       (goal: <= 1.15)
gain       the 50 %-pruned model / the dense model
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxcompress
from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, write_json
from benchmarks.subject import load_zoo, randomize, relative_error
from benchmarks.tables import markdown_table
from fxcompress.graph.cost import Latency, compare_latency

CONFIG = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


@dataclass(frozen=True)
class Comparison:
    """Two latencies in seconds; ``ratio`` is the median of the rounds, ``goal`` its bound if there is one."""

    name: str
    candidate: Latency
    reference: Latency
    goal: float | None

    @property
    def ratio(self) -> float:
        return self.candidate.ratio_to(self.reference)

    @property
    def met(self) -> bool:
        return self.goal is None or self.ratio <= self.goal


def resnet50(zoo: Path) -> nn.Module:
    """Return torchvision's ResNet-50 with random weights and statistics, in eval mode."""
    for name, build, inputs in load_zoo(zoo).cases(("tv",)):
        if name == "tv/resnet50":
            torch.manual_seed(0)
            model: nn.Module = build()
            randomize(model, 0, inputs())
            return model
    raise LookupError("the zoo has no model named 'tv/resnet50'")


def at_widths_of(model: nn.Module, small: nn.Module) -> nn.Module:
    """Return a copy of ``model`` whose layers are fresh ones of ``small``'s widths, holding its tensors.

    The copy runs the model's own ``forward``: no graph, no generated code. A layer that ``small`` no longer
    has (a folded BatchNorm) becomes ``nn.Identity``.
    """
    direct = copy.deepcopy(model)
    widths = dict(small.named_modules())
    for name, layer in list(direct.named_modules()):
        if not isinstance(layer, LAYERS):
            continue
        owner, _, attribute = name.rpartition(".")
        counterpart = widths.get(name)
        fresh = _fresh(counterpart) if isinstance(counterpart, LAYERS) else nn.Identity()
        setattr(direct.get_submodule(owner), attribute, fresh)
    return direct.eval()


def _fresh(layer: nn.Module) -> nn.Module:
    """Construct the layer anew from its public sizes, as its author would have."""
    fresh: nn.Module
    if isinstance(layer, nn.Conv2d):
        fresh = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            groups=layer.groups,
            bias=layer.bias is not None,
        )
    elif isinstance(layer, nn.BatchNorm2d):
        fresh = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    elif isinstance(layer, nn.Linear):
        fresh = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    else:
        raise TypeError(f"expected one of {[kind.__name__ for kind in LAYERS]}, got {type(layer).__name__}")
    fresh.load_state_dict(layer.state_dict())
    return fresh


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a function that does one step of SGD: forward, backward, update."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def compare(
    name: str, candidates: dict[str, Callable[[], Any]], goal: float | None, rounds: int
) -> Comparison:
    """Time ``candidate`` against ``reference``."""
    latencies = compare_latency(candidates, rounds=rounds, warmup=3)
    return Comparison(name, latencies["candidate"], latencies["reference"], goal)


def measure(model: nn.Module, pixels: int, batch: int, rounds: int) -> tuple[list[Comparison], float]:
    """Run the three comparisons; also return the error of the directly built model against the pruned one."""
    images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))
    one = images[:1]
    masked = fxcompress.compile(model, CONFIG, (images[:2],))
    small = fxcompress.speedup(masked, (images[:2],), verify=False)
    direct = at_widths_of(model, small)
    with torch.no_grad():
        error = relative_error(small(one), direct(one))
        forward = compare(
            "forward", {"candidate": partial(small, one), "reference": partial(direct, one)}, 1.05, rounds
        )
        gain = compare(
            "gain", {"candidate": partial(small, one), "reference": partial(model, one)}, None, rounds
        )
    labels = torch.arange(batch)
    dense = copy.deepcopy(model)
    steps = {
        "candidate": training_step(masked, images, labels),
        "reference": training_step(dense, images, labels),
    }
    return [forward, compare("step", steps, 1.15, max(5, rounds // 2)), gain], error


def table_of(comparisons: dict[str, dict[str, Any]]) -> Table:
    """Medians with quartiles in milliseconds, and the ratio."""
    table = Table(box=None, pad_edge=False)
    for column in ("comparison", "candidate ms", "reference ms", "ratio", "goal", ""):
        table.add_column(column, justify="left" if column in ("comparison", "") else "right")
    for name, row in comparisons.items():
        goal = "" if row["goal"] is None else f"<= {row['goal']}"
        verdict = "" if row["goal"] is None else "met" if row["met"] else "MISSED"
        spreads = (_spread(row[which]) for which in ("candidate", "reference"))
        table.add_row(name, *spreads, f"{row['ratio']:.3f}", goal, verdict)
    return table


def _spread(seconds: dict[str, float]) -> str:
    median, lower, upper = (1e3 * seconds[key] for key in ("median", "lower", "upper"))
    return f"{median:.1f} ({lower:.1f}-{upper:.1f})"


def markdown(record: dict[str, Any]) -> str:
    """What was compared, and the table."""
    return f"{record['model']}\n\n{markdown_table(table_of(record['comparisons']))}"


def record_of(item: Comparison) -> dict[str, Any]:
    """Return the comparison as a JSON-ready dict."""
    latencies = {"candidate": item.candidate.to_dict(), "reference": item.reference.to_dict()}
    return {**latencies, "ratio": item.ratio, "goal": item.goal, "met": item.met}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record; returns ``GOAL_MISSED`` if one was."""
    parser = argparse.ArgumentParser(prog="latency.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="more only on cores of your own")
    parser.add_argument("--json", type=Path, default=RESULTS / "latency.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    comparisons, error = measure(resnet50(options.zoo), options.pixels, options.batch, options.rounds)
    rows = {item.name: record_of(item) for item in comparisons}
    Console(width=110, highlight=False).print(table_of(rows))
    write_json(
        options.json,
        {
            "benchmark": "latency",
            "machine": machine_facts(),
            "model": f"resnet50, {options.pixels} px, training batch {options.batch}",
            "error of the directly built model": error,
            "comparisons": rows,
        },
    )
    return 0 if all(item.met for item in comparisons) else GOAL_MISSED


if __name__ == "__main__":
    sys.exit(main())
