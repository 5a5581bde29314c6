"""Accuracy at equal MACs after the same fine-tuning, criterion by criterion, beside Torch-Pruning.

    python benchmarks/criteria.py --seeds 5

Two tasks: scikit-learn's digits with a residual convnet, and naming the most frequent token of a sequence
with a two-layer transformer. Per seed a model is trained once; every criterion then prunes a copy of it to
the same share of its MACs (the sparsity, one for all layers, is found by bisection), and fine-tunes what is
left for the same number of steps. Torch-Pruning's magnitude and Taylor pruners do the same where they run
(``pip install --no-deps torch-pruning``).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from benchmarks.results_file import RESULTS, machine_facts, read_json, write_json
from benchmarks.tables import markdown_table
from fxcompress.budget import fit_budget
from fxcompress.demo import load_digits
from fxcompress.graph.cost import count_macs
from fxcompress.pruning import PRUNERS

Batch = tuple[Tensor, Tensor]
MEASURED = 10
"""Batches that criteria which measure are given."""


class Residual(nn.Module):
    """Three residual stages for 8 × 8 images."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
                nn.Conv2d(2 * width, width, 3, padding=1), nn.BatchNorm2d(width),
            )
            for _ in range(3)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, 10]`` of images ``[n, 1, 8, 8]``."""
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, tokens, width]`` to the same."""
        y = self.norm(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """A two-layer transformer over token ids; the answer is read at the last position."""

    def __init__(self, symbols: int = 8, length: int = 16, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(symbols, width)
        self.positions = nn.Parameter(0.1 * torch.randn(1, length, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[n, symbols]`` of ``ids [n, length]``."""
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions))[:, -1])  # type: ignore[no-any-return]


@dataclass
class Task:
    """A model to train, its batches, and what is pruned of it."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    """``steps`` → as many training batches."""
    test: Batch
    pruned: list[str]
    keep: float
    """The share of MACs that is left."""
    steps: tuple[int, int]
    """Steps of training, and of fine-tuning."""
    rates: tuple[float, float]


def digits(seed: int, scale: float = 1.0) -> Task:
    """Scikit-learn's digits."""
    data = load_digits(seed)

    def batches(steps: int) -> Iterator[Batch]:
        for _ in range(steps):
            chosen = torch.randint(len(data.train_images), (64,))
            yield data.train_images[chosen], data.train_labels[chosen]

    steps = int(300 * scale), int(150 * scale)
    test = data.test_images, data.test_labels
    return Task("digits", Residual, batches, test, ["stem", "blocks.*"], 0.15, steps, (3e-3, 2e-3))


def majority(seed: int, scale: float = 1.0) -> Task:
    """The token that a random sequence holds most often (of several the least)."""

    def draw(number: int) -> Batch:
        ids = torch.randint(0, 8, (number, 16))
        return ids, F.one_hot(ids, 8).sum(1).argmax(1)

    torch.manual_seed(seed + 1000)
    test = draw(2000)
    steps = int(500 * scale), int(60 * scale)
    pruned = ["*.q", "*.k", "*.v", "*.up"]
    return Task(
        "majority", Tokens, lambda n: (draw(64) for _ in range(n)), test, pruned, 0.35, steps, (3e-3, 1e-3)
    )


TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "majority": majority}


def train(model: nn.Module, task: Task, steps: int, rate: float) -> None:
    """Adam with a rate that falls to zero linearly."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(steps, 1))
    model.train()
    for inputs, labels in task.batches(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model: nn.Module, task: Task) -> float:
    """The share of test examples that are right."""
    inputs, labels = task.test
    with torch.inference_mode():
        return float((model.eval()(inputs).argmax(1) == labels).double().mean())


def pruned_by(name: str, model: nn.Module, task: Task) -> nn.Module:
    """What fxcompress leaves of ``model`` at the task's share of MACs, with criterion ``name``."""
    data = list(task.batches(MEASURED))
    entry = {"pruner": name, "sparsity": 0.5, "op_names": task.pruned, "granularity": "out_channel"}
    inputs = task.test[0][:2]
    options: dict[str, Any] = {"data": data, "loss_fn": lambda y, batch: F.cross_entropy(y, batch[1])}
    config = fit_budget(model, [entry], inputs, macs=task.keep, tolerance=0.005, **options)
    return fxcompress.speedup(fxcompress.compile(model, config, inputs, **options), inputs)


def pruned_by_torch_pruning(kind: str, model: nn.Module, task: Task) -> nn.Module:
    """What Torch-Pruning leaves; its ratio is found by the same bisection."""
    tp: Any = importlib.import_module("torch_pruning")
    inputs = task.test[0][:2]
    dense = count_macs(model, inputs).total
    best: nn.Module | None = None
    taylor = kind == "taylor"
    low, high = 0.0, 0.95
    for _ in range(12):
        ratio = (low + high) / 2
        twin = copy.deepcopy(model)
        layers = {n: m for n, m in twin.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        blocks = [m for m in twin.modules() if isinstance(m, Block)]
        criteria = tp.importance
        pruner = tp.pruner.BasePruner(
            twin,
            inputs,
            importance=criteria.GroupTaylorImportance() if taylor else criteria.GroupMagnitudeImportance(p=1),
            pruning_ratio=ratio,
            num_heads={layer: block.heads for block in blocks for layer in (block.q, block.k, block.v)},
            ignored_layers=[m for n, m in layers.items() if not any(fnmatch(n, p) for p in task.pruned)],
        )
        if taylor:
            for batch, labels in task.batches(MEASURED):
                F.cross_entropy(twin.eval()(batch), labels).backward()
        pruner.step()
        twin.zero_grad()
        if count_macs(twin.eval(), inputs).total <= task.keep * dense:
            best, high = twin, ratio
        else:
            low = ratio
    if best is None:
        raise RuntimeError("the budget was not met")
    return best


def methods(task: Task) -> dict[str, Callable[[nn.Module, Task], nn.Module]]:
    """Every criterion that applies to the task's model, and the peers'."""
    unsuited = {"majority": ("slim",), "digits": ("wanda",)}[task.name]
    found: dict[str, Callable[[nn.Module, Task], nn.Module]] = {
        name: lambda model, task, name=name: pruned_by(name, model, task)  # type: ignore[misc]
        for name in PRUNERS
        if name not in unsuited
    }
    if importlib.util.find_spec("torch_pruning") is not None:
        for kind in ("magnitude", "taylor"):
            found[f"Torch-Pruning {kind}"] = (
                lambda model, task, kind=kind: pruned_by_torch_pruning(kind, model, task)  # type: ignore[misc]
            )
    return found


def run_seed(task: Task, seed: int, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Train once, prune and fine-tune with every method: accuracy and share of MACs by method."""
    torch.manual_seed(seed)
    model = task.build()
    train(model, task, task.steps[0], task.rates[0])
    inputs = task.test[0][:2]
    dense = count_macs(model, inputs).total
    rows: dict[str, dict[str, Any]] = {"dense": {"accuracy": accuracy(model, task), "macs": 1.0}}
    for name, prune in methods(task).items():
        if only and name not in only:
            continue
        torch.manual_seed(seed + 1)
        try:
            small = prune(model, task)
        except Exception as error:
            rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            continue
        torch.manual_seed(seed + 2)
        train(small, task, task.steps[1], task.rates[1])
        share = count_macs(small, inputs).total / dense
        rows[name] = {"accuracy": accuracy(small, task), "macs": round(share, 4)}
    return rows


def summary_of(seeds: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """By method: mean and standard deviation of the accuracy over seeds, mean share of MACs, failures."""
    names = dict.fromkeys(name for rows in seeds.values() for name in rows)
    summary: dict[str, dict[str, Any]] = {}
    for name in names:
        rows = [r[name] for r in seeds.values() if name in r]
        right = [row["accuracy"] for row in rows if "accuracy" in row]
        entry: dict[str, Any] = {"seeds": len(right), "failed": len(rows) - len(right)}
        if right:
            entry |= {
                "mean": round(statistics.mean(right), 4),
                "spread": round(statistics.stdev(right), 4) if len(right) > 1 else 0.0,
                "macs": round(statistics.mean(row["macs"] for row in rows if "macs" in row), 4),
            }
        summary[name] = entry
    return summary


def table_of(task: str, summary: dict[str, dict[str, Any]]) -> Table:
    """One line per method, best first."""
    table = Table(title=task, box=None, pad_edge=False)
    for column in ("method", "accuracy", "spread", "MACs left", "seeds", "failed"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in sorted(summary.items(), key=lambda pair: -pair[1].get("mean", -1)):
        numbers = [f"{row[key]:.3f}" if key in row else "" for key in ("mean", "spread", "macs")]
        table.add_row(name, *numbers, str(row["seeds"]), str(row["failed"] or ""))
    return table


def markdown(record: dict[str, Any]) -> str:
    """A table per task."""
    return "\n\n".join(markdown_table(table_of(name, rows)) for name, rows in record["summary"].items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, record after every seed; seeds on record are not run again."""
    parser = argparse.ArgumentParser(prog="criteria.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--json", type=Path, default=RESULTS / "criteria.json")
    parser.add_argument("--fresh", action="store_true", help="forget recorded seeds")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console = Console(width=110, highlight=False)
    record = {} if options.fresh else read_json(options.json)
    runs: dict[str, dict[str, dict[str, dict[str, Any]]]] = record.get("runs", {})
    for name in options.tasks:
        for seed in range(options.seeds):
            if str(seed) in runs.get(name, {}):
                continue
            runs.setdefault(name, {})[str(seed)] = run_seed(TASKS[name](seed), seed)
            summary = {task: summary_of(seeds) for task, seeds in runs.items()}
            facts = {"benchmark": "criteria", "machine": machine_facts(), "summary": summary}
            write_json(options.json, facts | {"runs": runs})
            console.print(f"{name}, seed {seed}: done", markup=False)
    for name, seeds in runs.items():
        console.print(table_of(name, summary_of(seeds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
