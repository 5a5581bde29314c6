"""Accuracy at few bits after fine-tuning, method by method, on scikit-learn's digits.

    python benchmarks/low_bits.py --seeds 5

Per seed a small convnet with BatchNorm is trained in floats; every method then quantizes a copy of it and
fine-tunes it for as many steps, the learning rate of the steps of LSQ and LSQ+ a tenth of the weights'. As is
usual (Rastegari et al., ECCV 2016; Zhou et al. 2016) the weights of the first and the last layer, and the
image, keep 8 bits; DoReFa and BNN leave both layers in floats. "w2a2": weights and activations of 2 bits.
BNN has Hardtanh where the others have ReLU (Courbariaux et al. 2016), and is compared with such a network.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from benchmarks.results_file import RESULTS, machine_facts, read_json, write_json
from benchmarks.tables import markdown_table
from fxcompress.demo import Digits, load_digits
from fxcompress.quantization import QUANTIZERS

STEPS = 400, 200
"""Of training in floats, and of fine-tuning."""
RATES = 3e-3, 1e-3
BATCH = 64
STEM, HEAD, HIDDEN = "0", "11", ["3", "6"]


def net(activation: type[nn.Module] = nn.ReLU, width: int = 16) -> nn.Sequential:
    """``[n, 1, 8, 8]`` → ``[n, 10]``: three convolutions and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), activation()),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), activation()),
        *(nn.Conv2d(2 * width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), activation()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


@dataclass(frozen=True)
class Method:
    """A quantizer at some bits; ``activation`` is that of the network it is for."""

    name: str
    weights: int
    activations: int | None = None
    activation: type[nn.Module] = nn.ReLU

    def __str__(self) -> str:
        """``lsq w2a2``."""
        return f"{self.name} w{self.weights}" + (f"a{self.activations}" if self.activations else "")

    def config(self) -> list[dict[str, Any]]:
        """Its config list for ``net``."""
        if self.name == "dorefa":
            return [{"quant_bits": self.weights, "op_names": HIDDEN}]
        if self.name == "bnn":
            return [
                {"quant_types": ["weight"], "op_names": HIDDEN},
                {"quant_types": ["output"], "op_types": ["Hardtanh"]},
            ]
        w, a = self.weights, self.activations
        return [
            {"quant_bits": {"weight": w, "input": a, "output": a}},
            {"quant_bits": {"weight": 8, "input": 8, "output": a}, "op_names": [STEM]},
            {"quant_bits": 8, "op_names": [HEAD]},
        ]


METHODS = [
    *(Method("ptq", bits, bits) for bits in (8, 4)),
    *(Method(name, bits, bits) for bits in (8, 4, 2) for name in ("qat", "lsq", "lsq+")),
    *(Method("dorefa", bits) for bits in (4, 2, 1)),
    Method("bnn", 1, 1, nn.Hardtanh),
]


def train(model: nn.Module, digits: Digits, steps: int, optimizer: torch.optim.Optimizer) -> None:
    """Cross entropy, rates that fall to zero linearly."""
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(steps, 1))
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(digits.train_images), (BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(model(digits.train_images[chosen]), digits.train_labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of test images that are named right."""
    with torch.no_grad():
        return float((model.eval()(digits.test_images).argmax(1) == digits.test_labels).double().mean())


def floats(activation: type[nn.Module], digits: Digits, seed: int, scale: float = 1.0) -> nn.Module:
    """A network trained in floats; ``scale``: of the number of steps."""
    torch.manual_seed(seed)
    model = net(activation)
    train(model, digits, int(STEPS[0] * scale), torch.optim.Adam(model.parameters(), RATES[0]))
    return model


def quantized(method: Method, model: nn.Module, digits: Digits, seed: int, scale: float = 1.0) -> nn.Module:
    """A copy of ``model``, quantized and (but for ``ptq``) fine-tuned."""
    torch.manual_seed(seed + 1)
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), RATES[1])
    data = list(digits.train_images[:512].split(BATCH)) if method.name in ("ptq", "qat") else None
    quantizer = QUANTIZERS[method.name](
        model, method.config(), optimizer, example_inputs=digits.train_images[:2], data=data
    )
    module = quantizer.compress()
    if method.name == "ptq":
        return module.eval()
    if method.name.startswith("lsq"):
        optimizer.param_groups[-1]["lr"] = RATES[1] / 10
    train(module, digits, int(STEPS[1] * scale), optimizer)
    return module


def run_seed(seed: int, methods: Sequence[Method] = METHODS, scale: float = 1.0) -> dict[str, float]:
    """Accuracy by method; of float networks as ``float ReLU`` and ``float Hardtanh``."""
    digits, rows = load_digits(seed), {}
    models: dict[type[nn.Module], nn.Module] = {}
    for method in methods:
        if method.activation not in models:
            model = models[method.activation] = floats(method.activation, digits, seed, scale)
            rows[f"float {method.activation.__name__}"] = accuracy(model, digits)
        rows[str(method)] = accuracy(
            quantized(method, models[method.activation], digits, seed, scale), digits
        )
    return rows


def summary_of(runs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """By method: mean accuracy over seeds, its standard deviation, and the mean loss in points."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for rows in runs.values() for name in rows):
        rows = [r for r in runs.values() if name in r]
        base = "float Hardtanh" if name.startswith("bnn") or name == "float Hardtanh" else "float ReLU"
        right = [row[name] for row in rows]
        found[name] = {
            "mean": round(statistics.mean(right), 4),
            "spread": round(statistics.stdev(right), 4) if len(right) > 1 else 0.0,
            "loss": round(100 * statistics.mean(row[base] - row[name] for row in rows), 2),
        }
    return found


def _points(loss: float) -> str:
    return f"{round(loss, 1) + 0.0:.1f}"  # no −0.0


def table_of(summary: dict[str, dict[str, float]]) -> Table:
    """One line per method."""
    table = Table(box=None, pad_edge=False)
    for column in ("method", "accuracy", "spread", "points lost"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in summary.items():
        table.add_row(name, f"{row['mean']:.1%}", f"{row['spread']:.1%}", _points(row["loss"]))
    return table


def documented(summary: dict[str, dict[str, float]]) -> list[str]:
    """The lines of the table in docs/quantization.md."""
    return [
        f"| {name} | {row['mean']:.1%} ± {100 * row['spread']:.1f} | {_points(row['loss'])} |"
        for name, row in summary.items()
    ]


def markdown(record: dict[str, Any]) -> str:
    """The table."""
    return markdown_table(table_of(record["summary"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, record after every seed; seeds on record are not run again."""
    parser = argparse.ArgumentParser(prog="low_bits.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / "low_bits.json")
    parser.add_argument("--fresh", action="store_true", help="forget recorded seeds")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    record = {} if options.fresh else read_json(options.json)
    runs: dict[str, dict[str, float]] = record.get("runs", {})
    console = Console(width=110, highlight=False)
    for seed in range(options.seeds):
        if str(seed) not in runs:
            runs[str(seed)] = run_seed(seed)
            facts = {"benchmark": "low_bits", "machine": machine_facts(), "summary": summary_of(runs)}
            write_json(options.json, facts | {"runs": runs})
            console.print(f"seed {seed}: done", markup=False)
    console.print(table_of(summary_of(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
