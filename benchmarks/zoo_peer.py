"""Coverage and exactness beside Torch-Pruning: the same models, layers, fraction and criteria for both.

    python benchmarks/zoo_peer.py --jobs 2                  # every third model, if at most 32 M parameters
    python benchmarks/zoo_peer.py --every 1 --at-most 1000  # all of them

50 % structured L1 of every Conv and Linear except the output layers, randomized parameters and statistics,
each tool and model in a process of its own:

prunes  the tool returns a model
runs    whose outputs have the original's shapes
exact   it equals the model whose removed channels are masked, at most 1e-9 apart in float64, also at another
        batch size. For us that is the compiled model that a user fine-tunes; for Torch-Pruning, which has
        none, the original with what it removed set to zero, by the reading that suits it best
        (``removed_channels.py``), under the best of its documented recipes (``peer_recipe.py``)
trains  three SGD steps with finite gradients in train mode (Torch-Pruning: or in eval mode, should auxiliary
        classifiers that its eval-mode graph does not reach stand in the way)

Parameters removed: of the result, those that the output depends on count. The sample is every k-th name of
the zoo's list (torchvision, timm, Hugging Face), less what exceeds the size limit, and is the same for both.
Finished rows are kept: a second call continues, ``--fresh`` starts anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import torch
from rich.console import Console
from torch import nn

from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, read_json, write_json
from benchmarks.subject import load_zoo
from benchmarks.zoo import case_in_process
from benchmarks.zoo_case import Settings

OURS, PEER = "fxcompress", "Torch-Pruning"
MODULES = {OURS: "benchmarks.zoo_case", PEER: "benchmarks.zoo_peer_case"}
SETS = {"tv": "torchvision", "timm": "timm", "hf": "Hugging Face"}
COUNTS = ("prunes", "runs", "exact", "trains", "runs, at least 20 % removed", "runs, at least 40 % removed")
EXACT_AND_40 = "exact, at least 40 % removed"
CLOSE = 0.01
"""Shares of parameters removed that differ by less are called equal."""

Row = dict[str, dict[str, Any]]
"""Tool → what became of the model: ``prunes``, …, ``trains``, ``removed`` (a share), ``obstacle``."""


def sample(
    cases: Iterable[tuple[str, Callable[[], nn.Module], Any]], every: int, at_most: float
) -> tuple[list[str], list[str]]:
    """Every ``every``-th name, from the first: those up to ``at_most`` million parameters, and the rest."""
    taken: list[str] = []
    too_big: list[str] = []
    for index, (name, build, _) in enumerate(cases):
        if index % every == 0:
            (taken if _size(build) <= at_most * 1e6 else too_big).append(name)
    return taken, too_big


def _size(build: Callable[[], nn.Module]) -> int:
    """Parameters, without storage where the model can be built so."""
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):
        model = build()
    return sum(parameter.numel() for parameter in model.parameters())


def result_of(tool: str, name: str, options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """One tool on one model, in a process of its own, in the terms of ``Row``."""
    found = case_in_process(MODULES[tool], name, options, asdict(settings))
    before, after = found.get("parameters") or (0, 0)
    runs = bool(found.get("runs", found.get("error32") is not None))
    errors = [found.get("error64"), found.get("error64_other_batch")]
    kept = {key: found[key] for key in ("sensitivity", "reading", "recipe", "parameters") if found.get(key)}
    return kept | {
        "prunes": bool(found.get("prunes", runs)),
        "runs": runs,
        "exact": bool(found.get("exact")),
        "trains": bool(found.get("trains")),
        "removed": round(1 - after / before, 4) if runs and before and after else None,
        "error": max((error for error in errors if error is not None), default=None),
        "obstacle": found.get("obstacle", ""),
    }


def summarize(rows: dict[str, Row]) -> dict[str, Any]:
    """Counts per tool over all models and per set, and who removes more where both results are exact."""

    def counts(tool: str, chosen: Sequence[Row]) -> dict[str, int]:
        mine = [row[tool] for row in chosen]
        share = [result["removed"] or 0.0 for result in mine]
        found = {key: sum(result[key] for result in mine) for key in COUNTS[:4]}
        for key, least in zip(COUNTS[4:], (0.2, 0.4), strict=True):
            found[key] = sum(part >= least for part in share)
        exact = [result["exact"] for result in mine]
        return found | {EXACT_AND_40: sum(e and s >= 0.4 for e, s in zip(exact, share, strict=True))}

    by_set = {prefix: [row for name, row in rows.items() if name.startswith(f"{prefix}/")] for prefix in SETS}
    both = {name: row for name, row in rows.items() if row[OURS]["exact"] and row[PEER]["exact"]}
    gains = {name: row[PEER]["removed"] - row[OURS]["removed"] for name, row in both.items()}
    return {
        "models": len(rows),
        **{tool: counts(tool, list(rows.values())) for tool in MODULES},
        "sets": {
            prefix: {"models": len(chosen)} | {tool: counts(tool, chosen)["exact"] for tool in MODULES}
            for prefix, chosen in by_set.items()
        },
        "both exact": len(both),
        "of these, Torch-Pruning removes more": sorted(name for name, gain in gains.items() if gain >= CLOSE),
        "of these, fxcompress removes more": sorted(name for name, gain in gains.items() if gain <= -CLOSE),
    }


def markdown(record: dict[str, Any]) -> str:
    """A table of counts for both, then who removes more where both are exact, and the peer's obstacles."""
    summary, sampled = record["summary"], record["sample"]
    models = summary["models"]
    lines = [
        f"{models} public models (every {_ordinal(sampled['every'])} of the zoo, up to "
        f"{sampled['at_most']:g} million parameters), 50 % of the channels by L1 magnitude, output layers "
        "kept; number of models. Exact means at most 1e-9 from the masked model in float64; Torch-Pruning, "
        "which has no masked model, is judged against its masking by zeros, norms over the kept channels.",
        "",
        "| | fxcompress | Torch-Pruning |",
        "|---|---:|---:|",
    ]
    for key in (*COUNTS, EXACT_AND_40):
        lines.append(f"| {key} | {summary[OURS][key]} | {summary[PEER][key]} |")
    for prefix, found in summary["sets"].items():
        lines.append(f"| exact of {found['models']} {SETS[prefix]} | {found[OURS]} | {found[PEER]} |")
    lines += ["", f"Both are exact on {summary['both exact']} models. {_who_removes_more(record)}"]
    return "\n".join(lines)


def _ordinal(number: int) -> str:
    return {1: "one", 2: "second", 3: "third"}.get(number, f"{number}th")


def _who_removes_more(record: dict[str, Any]) -> str:
    summary = record["summary"]
    sentences = []
    for tool in (PEER, OURS):
        names = summary[f"of these, {tool} removes more"]
        shares = [
            f"{name} ({record['rows'][name][tool]['removed']:.0%}, "
            f"{record['rows'][name][PEER if tool == OURS else OURS]['removed']:.0%})"
            for name in names
        ]
        sentences.append(
            f"{tool} removes more parameters of {len(names)}{': ' if names else ''}{', '.join(shares)}."
        )
    return " ".join(sentences)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="zoo_peer.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--every", type=int, default=3, metavar="K", help="every K-th model of the list")
    parser.add_argument("--at-most", type=float, default=32.0, metavar="M", help="million parameters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--time-limit", type=float, default=900.0, metavar="S", help="seconds per model and tool"
    )
    parser.add_argument("--memory-limit", type=float, default=22.0, metavar="GIB", help="address space")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--fresh", action="store_true", help="forget recorded rows")
    parser.add_argument("--json", type=Path, default=RESULTS / "zoo_peer.json")
    options = parser.parse_args(arguments)
    for name in ("every", "jobs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both tools over the sample, record as rows come; ``GOAL_MISSED`` if ours is not exact somewhere."""
    options = parse_options(arguments)
    settings = Settings(train=True, seed=options.seed)
    names, too_big = sample(load_zoo(options.zoo).cases(tuple(options.sets)), options.every, options.at_most)
    head = {
        "benchmark": "zoo_peer",
        "machine": machine_facts() | {"threads": 1, "jobs": options.jobs},
        "settings": asdict(settings),
        "sample": {"every": options.every, "at_most": options.at_most, "too big": too_big},
    }
    old = {} if options.fresh else read_json(options.json)
    kept = old.get("rows", {}) if old.get("settings") == asdict(settings) else {}
    rows: dict[str, Row] = {name: dict(kept.get(name, {})) for name in names}
    todo = [(name, tool) for name in names for tool in MODULES if tool not in rows[name]]
    show = Console(width=140, highlight=False).print
    show(f"{len(names)} models and {len(too_big)} too big ones, {len(todo)} processes to go")
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(result_of, tool, name, options, settings): (name, tool) for name, tool in todo}
        for future in as_completed(running):
            name, tool = running[future]
            rows[name][tool] = result = future.result()
            _write(options.json, head, rows)
            state = "exact" if result["exact"] else "runs" if result["runs"] else "FAILS"
            show(f"{name}: {tool} {state} {result['removed'] or 0:.0%} {result['obstacle']}", markup=False)
    _write(options.json, head, rows)
    show(markdown(read_json(options.json)), markup=False)
    return 0 if all(row[OURS]["exact"] for row in rows.values()) else GOAL_MISSED


def _write(path: Path, head: dict[str, Any], rows: dict[str, Row]) -> None:
    complete = {name: row for name, row in rows.items() if len(row) == len(MODULES)}
    write_json(path, {**head, "summary": summarize(complete), "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
