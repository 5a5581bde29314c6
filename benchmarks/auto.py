"""TPE against random search: the best loss on digits at a tenth of the MACs, after each number of trials.

    python benchmarks/auto.py --seeds 4 --trials 25

A trial prunes every layer of the trained ``DigitNet`` to a sparsity of its own by ``l1`` or ``fpgm``, scales
what is above the budget, and trains for an epoch. The metric is the negative cross entropy on test images.
Both samplers see the same spaces, seeds and budget and no points to begin with; nothing is exported, since
the costs in question are counted. Seeds on record are not run again; ``--fresh`` forgets them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from benchmarks.results_file import RESULTS, machine_facts, read_json, write_json
from benchmarks.tables import markdown_table
from fxcompress.auto.digits import digits, epoch
from fxcompress.auto.digits import model as trained
from fxcompress.auto.driver import Driver
from fxcompress.auto.jobs import RESULT, Context
from fxcompress.auto.jobs import write_json as write_result
from fxcompress.auto.limits import limits_of
from fxcompress.auto.options import make_options
from fxcompress.auto.search import Space
from fxcompress.auto.search_job import SearchJob
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import count_macs

SAMPLERS = ("tpe", "random")
BUDGET = {"macs": 0.1}


class Counted(SearchJob):
    """Trials whose costs are counted; no files."""

    def run(self, spec: dict[str, Any], context: Context) -> dict[str, Any]:
        """Compress and evaluate."""
        module, config_list = self.compress(spec, context)
        result: dict[str, Any] = {"metric": self.metric(module), "config_list": config_list, "spec": spec}
        macs = [count_macs(m, digits().test_images[:2]).total for m in (module, self.model())]
        result |= {"measured": {"macs": macs[0]}, "shares": {"macs": macs[0] / macs[1]}}
        write_result(context.folder / RESULT, result)
        return result

    def baseline(self, context: Context) -> dict[str, Any]:
        """The layers."""
        dense = capture(self.model(), self.example_inputs())
        costs = {"macs": count_macs(dense, dense.example_inputs).total}
        result = {"metric": self.metric(dense), "measured": costs, "shares": {"macs": 1.0}}
        result |= self.facts(dense)
        write_result(context.dense / RESULT, result)
        return result


def negative_loss(module: nn.Module) -> float:
    """On the test images."""
    with torch.no_grad():
        return -float(functional.cross_entropy(module(digits().test_images), digits().test_labels))


def tune(module: nn.Module) -> None:
    """An epoch of Adam."""
    epoch(module, torch.optim.Adam(module.parameters(), 2e-3), functional.cross_entropy, 0)


def best_so_far(metrics: Sequence[float | None]) -> list[float]:
    """The best of the metrics up to each; a trial that failed adds nothing."""
    found: list[float] = []
    for metric in metrics:
        known = [x for x in (*found[-1:], metric) if x is not None]
        found.append(max(known, default=float("-inf")))
    return found


def run(sampler: str, seed: int, trials: int) -> list[float]:
    """The best metric after each trial of one search."""
    limits = limits_of(BUDGET)
    job = Counted(trained, negative_loss, digits().test_images[:2], tune, limits=limits)
    space = Space(("l1", "fpgm"), ("none",), (8,))
    with tempfile.TemporaryDirectory() as folder:
        given = {"folder": folder, "trials": trials, "sampler": sampler, "seed": seed, "limits": limits}
        found = Driver(job, space.propose, "samplers", make_options(given)).run()
    return best_so_far([row.metric if row.fits else None for row in found.trials])


def table_of(runs: dict[str, dict[str, list[float]]]) -> Table:
    """Mean and standard deviation over seeds of the best metric, at a few numbers of trials."""
    table = Table(box=None, pad_edge=False)
    lengths = {len(line) for lines in runs.values() for line in lines.values()}
    moments = [n for n in (5, 10, 15, 20, 25, 50) if n <= min(lengths)]
    for column in ("sampler", *(f"{n} trials" for n in moments)):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for sampler, lines in runs.items():
        cells = []
        for n in moments:
            values = [line[n - 1] for line in lines.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        table.add_row(sampler, *cells)
    return table


def markdown(record: dict[str, Any]) -> str:
    """The table."""
    return markdown_table(table_of(record["runs"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, record after every search, print."""
    parser = argparse.ArgumentParser(prog="auto.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--json", type=Path, default=RESULTS / "auto.json")
    parser.add_argument("--fresh", action="store_true", help="forget recorded seeds")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    console = Console(width=110, highlight=False)
    record = {} if options.fresh else read_json(options.json)
    runs: dict[str, dict[str, list[float]]] = record.get("runs", {})
    for seed in range(options.seeds):
        for sampler in SAMPLERS:
            lines = runs.setdefault(sampler, {})
            if len(lines.get(str(seed), [])) != options.trials:
                lines[str(seed)] = [round(x, 6) for x in run(sampler, seed, options.trials)]
                facts = {"benchmark": "auto", "machine": machine_facts(), "budget": BUDGET}
                write_json(options.json, facts | {"runs": runs})
    console.print(table_of(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
