"""``docs/benchmarks.md``, from the records alone: what is measured, how, when, and the table of each."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.plan import LONG_RUNS, PLAN, Benchmark, LongRun
from benchmarks.results_file import read_json
from benchmarks.runner import FINISHED, RUN
from benchmarks.tables import markdown_table

HEAD = """\
# Benchmarks

Generated from the records in [benchmarks/results](../benchmarks/results/README.md); not a figure is written
by hand.

`python -m benchmarks` (in a clone, after `pip install -e '.[bench]'`) runs all of them, one at a time and
on one thread, in under an hour on two cores, then writes this page and the tables of the README anew.
`--list` says what each takes and what is missing for it, `--only NAME` chooses, `--resume` goes on after
Ctrl-C, `--page` and `--readme` only write what is generated. torchvision and timm go in with
`pip install --no-deps`, which keeps torch as it is.

Ratios compare what ran in turns in one process; seconds of two benchmarks are not for comparing. Where
another tool is better, the ratio says so. What takes longer than the hour allows is run there as a sample,
and as a whole, apart, in [long runs](#long-runs).
"""
LONG_HEAD = """\
## Long runs

Each made by itself, on another day than the run above, which does not repeat it.
"""
_DEFINITION = re.compile(r"^(\S.*?) {2,}(\S.*)$")


def page(results: Path) -> str:
    """The page of the records in ``results``."""
    run = read_json(results / RUN)
    parts = [HEAD, *_run(run)]
    for benchmark in PLAN:
        record = read_json(results / f"{benchmark.name}.json")
        if record:
            parts += [*_section(benchmark, record, run)]
    parts.append(
        "## Long runs\n\nEach made by itself, on another day than the run above, and not repeated by it.\n"
    )
    for long in LONG_RUNS:
        parts += [*_long(long, read_json(results / "long" / f"{long.name}.json"))]
    return "\n".join(parts)


def _run(run: dict[str, Any]) -> Iterator[str]:
    """Of the whole run: when, where, and what became of each benchmark."""
    if not run:
        return
    table = Table()
    for column in ("benchmark", "", "minutes", "of the whole"):
        table.add_column(column, justify="right" if column == "minutes" else "left")
    entries = run["benchmarks"]
    for benchmark in (b for b in PLAN if b.name in entries):
        entry = entries[benchmark.name]
        said = f"{entry['status']}{': ' if entry['reason'] else ''}{entry['reason']}"
        said += "".join(f"; without {peer}" for peer in entry["absent"])
        part = (benchmark.sample or "all") if entry["status"] in FINISHED else ""
        table.add_row(benchmark.name, said, f"{entry['seconds'] / 60:.1f}", part)
    yield "## The run\n"
    yield f"{_when(run)}, {_machine(run['machine'])}: {run['minutes']:.0f} minutes.\n"
    yield f"{markdown_table(table)}\n"


def _section(benchmark: Benchmark, record: dict[str, Any], run: dict[str, Any]) -> Iterator[str]:
    module = importlib.import_module(benchmark.runs)
    yield f"## {benchmark.name}\n"
    yield f"{explained(module.__doc__ or '')}\n"
    facts = [_when(record["run"]) if "run" in record else "Commit not on record"]
    facts += [_machine(record["machine"])] if "machine" in record else []
    facts += [f"sample: {benchmark.sample}"] if benchmark.sample and "run" in record else []
    yield f"*{'; '.join(facts)}.*\n"
    if not is_of_run(record, run):
        yield "**Not of the last run.**\n"
    yield f"{module.markdown(record)}\n"
    if benchmark.name in PICTURES:
        file, label = PICTURES[benchmark.name]
        yield f"![{label}](images/{file})\n"


def _long(long: LongRun, record: dict[str, Any]) -> Iterator[str]:
    module = importlib.import_module(f"benchmarks.{long.benchmark}")
    yield f"### {long.name}: {long.title}\n"
    machine = f", {_machine(record['machine'])}" if "machine" in record else ""
    yield f"*`{long.command}`, about {long.minutes} min{machine}.*\n"
    yield f"{module.markdown(record)}\n"


def is_of_run(record: dict[str, Any], run: dict[str, Any]) -> bool:
    """Whether the record was made in that run."""
    return bool(run) and record.get("run", {}).get("started") == run["started"]


def _when(facts: dict[str, Any]) -> str:
    changed = "" if facts["clean"] else " with changes"
    return f"{facts['started']}, commit {facts['commit'] or 'unknown'}{changed}"


def _machine(facts: dict[str, Any]) -> str:
    """Facts of the machine as a phrase; older records lack some."""
    named = {key: facts[key] for key in ("architecture", "cpu_capability") if key in facts}
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    kind = " ".join([*named.values(), *(["AMX"] if facts.get("amx") else [])])
    return f"{facts['cores']} cores, {threads}, {kind}, Python {facts['python']}, torch {facts['torch']}"


PICTURES = {
    "compiler_speed": (
        "compile_time.svg",
        "Processor seconds over graph nodes, logarithmic: fxcompress beside Torch-Pruning",
    )
}
"""Benchmark → the file of its picture and what it shows."""


def explained(docstring: str) -> str:
    """A module's docstring as Markdown: no commands, definitions as lists, code in single backticks."""
    paragraphs = [p for p in docstring.strip().split("\n\n") if not _is_command(p)]
    text = "\n\n".join(_listed(paragraph) for paragraph in paragraphs)
    return text.replace("``", "`")


def _is_command(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    return all(line.startswith(("    python ", "    pip ")) for line in lines)


def _listed(paragraph: str) -> str:
    """``name   meaning`` lines, continued by indented ones, as a list; other paragraphs as they are."""
    lines = paragraph.splitlines()
    if not all(_DEFINITION.match(line) or line.startswith("  ") for line in lines) or lines[0].startswith(
        " "
    ):
        return paragraph
    items: list[str] = []
    for line in lines:
        if line.startswith(" "):
            items[-1] += f" {line.strip()}"
        elif match := _DEFINITION.match(line):
            items.append(f"- **{match[1]}**: {re.sub(' +', ' ', match[2])}")
    return "\n".join(items)
