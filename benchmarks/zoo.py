"""Coverage of public models: captured, exact, how much smaller, at what cost, and what stands in the way.

    python benchmarks/zoo.py --classification-convnets
    python benchmarks/zoo.py --sets timm hf --only '*vit*' --json vit.json

Every model gets 50 % structured L1 on Conv and Linear except its output layers, with randomized statistics,
biases and layer scales, in a process of its own. *Exact* means a relative error of at most 1e-9 in float64,
also at another batch size. Finished rows are kept: a second call continues where the first stopped,
``--fresh`` starts anew.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

from rich.console import Console
from rich.table import Table

from benchmarks.fresh import row_of_process
from benchmarks.results_file import GOAL_MISSED, LONG, machine_facts, read_json, write_json
from benchmarks.subject import load_zoo
from benchmarks.tables import markdown_table, pairs_table
from benchmarks.zoo_case import EXACT32, Row, Settings

CLASSIFICATION_CONVNETS = (
    "tv/alexnet",
    "tv/vgg*",
    "tv/resnet*",
    "tv/resnext*",
    "tv/wide_resnet*",
    "tv/squeezenet*",
    "tv/densenet*",
    "tv/inception_v3",
    "tv/googlenet",
    "tv/mnasnet*",
    "tv/mobilenet_v2",
    "tv/mobilenet_v3*",
    "tv/shufflenet_v2*",
    "tv/efficientnet_*",
    "tv/regnet_*",
    "tv/convnext_*",
)
"""The torchvision families whose every member must be captured, exact and lose ``GOAL`` of its parameters."""

GOAL = 0.4
SHOWN = 80
"""Models of a table on the page, at most."""


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``--json`` defaults to a file per kind of run under ``results/long``."""
    parser = argparse.ArgumentParser(prog="zoo.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--sets", nargs="+", default=["tv", "timm", "hf"], choices=["tv", "timm", "hf"])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="GLOB", help="model names, e.g. 'tv/resnet*'"
    )
    parser.add_argument(
        "--classification-convnets", action="store_true", help="the torchvision convnet families"
    )
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument(
        "--per-layer", action="store_true", help="masks that do not agree (dependency_aware=False)"
    )
    parser.add_argument(
        "--train", action="store_true", help="also: gradients and three SGD steps of the result"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=None, help="result file (default: benchmarks/results/long/zoo*.json)"
    )
    parser.add_argument("--time-limit", type=float, default=900.0, metavar="S", help="seconds per model")
    parser.add_argument(
        "--memory-limit", type=float, default=22.0, metavar="GIB", help="address space per model"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--fresh", action="store_true", help="forget recorded rows")
    parser.add_argument("--retry", action="store_true", help="run recorded rows that are not exact again")
    options = parser.parse_args(arguments)
    if not 0 < options.sparsity < 1:
        parser.error(f"--sparsity: expected a number between 0 and 1, got {options.sparsity}")
    if options.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {options.jobs}")
    if options.json is None:
        options.json = LONG / ("zoo-per-layer.json" if options.per_layer else "zoo.json")
    return options


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match a pattern (all without patterns), in their own order."""
    return [name for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]


def run_in_process(name: str, options: argparse.Namespace, settings: Settings) -> Row:
    """Run one model in a fresh interpreter; a crash or a missed time limit becomes the row's obstacle."""
    return row_from({"name": name} | case_in_process("benchmarks.zoo_case", name, options, asdict(settings)))


def case_in_process(
    module: str, name: str, options: argparse.Namespace, settings: dict[str, Any]
) -> dict[str, Any]:
    """Run ``module``'s case ``name`` in a fresh interpreter and return its row, or ``{"obstacle": …}``."""
    asked = {
        "zoo": str(options.zoo.resolve()),
        "name": name,
        "memory_gib": options.memory_limit,
        "settings": settings,
    }
    return row_of_process(module, asked, options.time_limit)


def row_from(record: dict[str, Any]) -> Row:
    """Rebuild a row from its JSON form; unknown keys of older files are dropped."""
    known = {field.name for field in fields(Row)}
    values: dict[str, Any] = {key: value for key, value in record.items() if key in known}
    for pair in ("parameters", "macs"):
        values[pair] = tuple(values[pair]) if values.get(pair) else None
    return Row(**values)


def removed(pair: tuple[int, int] | None) -> float | None:
    """The fraction removed, ``None`` when it is not known."""
    return 1 - pair[1] / pair[0] if pair and pair[0] and pair[1] else None


def reaches_goal(row: Row, goal: float = GOAL) -> bool:
    """Captured, exact, and at least ``goal`` of the parameters gone."""
    return row.captured and row.exact and (removed(row.parameters) or 0.0) >= goal


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, worst cases and the obstacles by kind."""
    errors = {
        row.name: max(row.error64, row.error64_other_batch or 0.0) for row in rows if row.error64 is not None
    }
    shares = {row.name: share for row in rows if (share := removed(row.parameters)) is not None}
    slowest = {row.name: row.seconds["speedup"] for row in rows if "speedup" in row.seconds}
    trained = [row for row in rows if row.trains is not None]
    return {
        "models": len(rows),
        "captured": sum(row.captured for row in rows),
        "exact": sum(row.exact for row in rows),
        "exact and at least 40 % of parameters removed": sum(map(reaches_goal, rows)),
        "exact and at least 20 % of parameters removed": sum(reaches_goal(row, 0.2) for row in rows),
        "float32 within 1e-4": sum(row.error32 is not None and row.error32 <= EXACT32 for row in rows),
        "trains": f"{sum(bool(row.trains) for row in trained)} of {len(trained)}",
        "worst float64 error": _extreme(errors, max),
        "least parameters removed": _extreme(shares, min),
        "slowest speedup, s": _extreme(slowest, max),
        "obstacles": dict(
            Counter(row.obstacle.partition(":")[0] for row in rows if row.obstacle).most_common()
        ),
    }


def _extreme(values: dict[str, float], choose: Any) -> list[Any]:
    if not values:
        return []
    name = choose(values, key=lambda key: values[key])
    return [name, float(f"{values[name]:.4g}")]


def table_of(rows: Sequence[Row]) -> Table:
    """One line per model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "model",
        "exact",
        "error64",
        "error32",
        "params",
        "MACs",
        "capture s",
        "insert s",
        "speedup s",
    ):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    table.add_column("kept")
    table.add_column("trains")
    table.add_column("first obstacle", overflow="fold")
    for row in rows:
        error64 = None if row.error64 is None else max(row.error64, row.error64_other_batch or 0.0)
        seconds = [_number(row.seconds.get(stage), ".2f") for stage in ("capture", "insert", "speedup")]
        table.add_row(
            row.name,
            "yes" if row.exact else "NO",
            _number(error64, ".0e"),
            _number(row.error32, ".0e"),
            _share(removed(row.parameters)),
            _share(removed(row.macs)),
            *seconds,
            _number(row.kept, "d"),
            {None: "", True: "yes", False: "NO"}[row.trains],
            row.obstacle or "; ".join(row.kept_reasons[:1]),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"-{value:.1%}"


def markdown(record: dict[str, Any]) -> str:
    """Counts and worst cases, then the models: all of a few, of many those that are not exact."""
    rows = [row_from(row) for row in record["rows"]]
    shown = [row for row in rows if len(rows) <= SHOWN or not row.exact]
    tables = [pairs_table(summarize(rows)), *([table_of(shown)] if shown else [])]
    return "\n\n".join(map(markdown_table, tables))


class Record:
    """The rows of one result file, written after every model."""

    def __init__(self, path: Path, settings: Settings, fresh: bool, jobs: int = 1) -> None:
        self.path, self.settings, self.jobs = path, settings, jobs
        old = {} if fresh else read_json(path)
        kept = old.get("rows", []) if old.get("settings") == asdict(settings) else []
        self.rows = {row.name: row for row in map(row_from, kept)}

    def add(self, row: Row) -> None:
        self.rows[row.name] = row
        rows = [self.rows[name] for name in sorted(self.rows)]
        write_json(
            self.path,
            {
                "benchmark": "zoo",
                "machine": machine_facts() | {"threads": 1, "jobs": self.jobs},
                "settings": asdict(self.settings),
                "summary": summarize(rows),
                "rows": [asdict(row) for row in rows],
            },
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected models, print the table; returns ``GOAL_MISSED`` if any is not captured and exact."""
    options = parse_options(arguments)
    settings = Settings(options.sparsity, options.per_layer, options.train, options.seed)
    patterns = [*options.only, *(CLASSIFICATION_CONVNETS if options.classification_convnets else ())]
    sets = ["tv"] if options.classification_convnets and not options.only else options.sets
    names = select((name for name, _, _ in load_zoo(options.zoo).cases(tuple(sets))), patterns)
    record = Record(options.json, settings, options.fresh, options.jobs)
    done = {name for name, row in record.rows.items() if row.exact or not options.retry}
    todo = [name for name in names if name not in done]
    console = Console(width=max(140, Console().width), highlight=False)
    console.print(f"{len(names)} models, {len(names) - len(todo)} of them already recorded")
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(run_in_process, name, options, settings) for name in todo]
        for index, future in enumerate(as_completed(running), 1):
            row = future.result()
            record.add(row)
            state = "exact" if row.exact else "NOT EXACT"
            share = _share(removed(row.parameters))
            console.print(f"[{index}/{len(todo)}] {row.name}: {state} {share} {row.obstacle}", markup=False)
    rows = [record.rows[name] for name in names]
    console.print(table_of(rows))
    for key, value in summarize(rows).items():
        console.print(f"{key}: {value}", markup=False)
    return 0 if all(row.exact for row in rows) else GOAL_MISSED


if __name__ == "__main__":
    sys.exit(main())
