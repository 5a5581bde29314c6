"""The opening tables of the README, from the records: the demo, and fxcompress beside other tools.

A row holds what was measured, our figure, the other one, and how many times ours is better: above 1 ours is,
below 1 the other tool is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.compiler_speed import timings_of
from benchmarks.demo import result_of
from benchmarks.int8 import BATCHES
from benchmarks.minilm import documented
from benchmarks.page import is_of_run
from benchmarks.results_file import read_json
from benchmarks.runner import RUN
from benchmarks.tables import markdown_table

NOTES = {" †": "not of the last run", " ‡": "of a long run, made apart"}
"""Marks behind rows whose record is not of the last run."""


@dataclass(frozen=True)
class Row:
    """``times``: how many times better ours is, one per case; empty where that is no ratio."""

    measured: str
    ours: str
    other: str = ""
    times: tuple[float, ...] = ()


def demo_table(results: Path) -> str:
    """Before and after; of latencies the change alone, since seconds are those of one machine."""
    shown = Table("", "before", "after", "change")
    for column in shown.columns[1:]:
        column.justify = "right"
    columns = result_of(read_json(results / "demo.json")).table().columns
    for cells in zip(*(column.cells for column in columns), strict=True):
        name, *amounts = (str(cell) for cell in cells)
        if ", ms per " in name:
            name, amounts = name.replace(", ms per ", ", "), ["", "", amounts[-1]]
        shown.add_row(name, *amounts)
    return markdown_table(shown)


def minilm_table(results: Path) -> str:
    """The table of docs/quantization.md."""
    return documented(read_json(results / "minilm.json"))


def peers_table(results: Path) -> str:
    """All rows whose records are there; a note where not all are of one run."""
    run = read_json(results / RUN)
    table = Table("", "fxcompress", "beside it", "times better")
    table.columns[3].justify = "right"
    marks = set()
    for name, rows_of in ROWS.items():
        record = read_json(results / f"{name}.json")
        if not record:
            continue
        mark = " ‡" if name.startswith("long/") else "" if is_of_run(record, run) else " †"
        marks.add(mark)
        for row in rows_of(record):
            times = " / ".join(f"{ratio:.2f}" for ratio in row.times)
            table.add_row(row.measured + mark, row.ours, row.other, times)
    notes = "; ".join(f"{mark.strip()} {note}" for mark, note in NOTES.items() if mark in marks)
    return f"{markdown_table(table)}\n\n{notes}".rstrip()


def zoo_peer_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Of the sample that both tools were given: how many run, are exact, and lose two fifths as well."""
    ours, theirs = (record["summary"][tool] for tool in ("fxcompress", "Torch-Pruning"))
    told = {
        "runs": "run after pruning half of their channels",
        "exact": "are exact (1e-9)",
        "exact, at least 40 % removed": "are exact and lose 40 % of their parameters or more",
        "trains": "train on",
    }
    for key, what in told.items():
        times = (ours[key] / theirs[key],) if theirs[key] else ()
        measured = f"of {record['summary']['models']} public models {what}"
        yield Row(measured, str(ours[key]), f"Torch-Pruning {theirs[key]}", times)


def memory_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Peak memory of compressing, in times the model's own bytes, verification included."""
    found = {
        model: [row[tool]["ratio"] for tool in ("fxcompress", "Torch-Pruning") if "ratio" in row[tool]]
        for model, row in record.get("compress", {}).items()
    }
    for model, ratios in found.items():
        if len(ratios) == 2:
            ours, theirs = (f"{ratio:.1f}× the model" for ratio in ratios)
            measured = f"peak memory of pruning {model.removeprefix('tv/')}"
            yield Row(measured, ours, f"Torch-Pruning {theirs}", (ratios[1] / ratios[0],))


def zoo_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Coverage, exactness and what is removed."""
    facts = record["summary"]
    least = facts["exact and at least 20 % of parameters removed"]
    yield Row(
        f"public models captured, pruned by half and exact to 1e-9, of {facts['models']}",
        f"{facts['exact']}, of which {least} lose at least a fifth of their parameters",
    )


def fuzz_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Laws broken."""
    yield Row(
        f"random networks on which a law fails, of {record['networks']:,}", str(len(record["failures"]))
    )


def compiler_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Where Torch-Pruning does best, at the median, and where it does worst."""
    timings = [(t.ratio, t) for t in timings_of(record) if t.ratio is not None]
    if not timings:
        return
    timings.sort(key=lambda pair: pair[0])
    named = {"least": timings[0], "median": timings[len(timings) // 2], "greatest": timings[-1]}
    for which, (ratio, t) in named.items():
        model = t.model.removeprefix("tv/")
        other = f"Torch-Pruning {_seconds(ratio * t.speedup)}"
        measured = f"time to prune {model} ({which} ratio of {len(timings)} models)"
        yield Row(measured, _seconds(t.speedup), other, (ratio,))


def latency_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Of the pruned ResNet-50, and of a step under masks."""
    others = {
        "forward": ("latency of ResNet-50, half of its channels pruned", "built at those widths"),
        "gain": ("the same", "dense"),
        "step": ("training step of ResNet-50 under masks", "without masks"),
    }
    for key, (measured, other) in others.items():
        row = record["comparisons"][key]
        ours, theirs = (_seconds(row[which]["median"]) for which in ("candidate", "reference"))
        yield Row(measured, ours, f"{other} {theirs}", (1 / row["ratio"],))


def int8_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Per model, times float32 onnxruntime, beside the better of its own two quantizers."""
    for name, row in record["rows"].items():
        speedup = [row["speedup"][str(batch)] for batch in BATCHES]
        tool = max(("static", "dynamic"), key=lambda tool: min(ratios[tool] for ratios in speedup))
        ours, other = (
            " / ".join(f"{ratios[which]:.2f}×" for ratios in speedup) + _decibels(row["sqnr"].get(which))
            for which in ("fxcompress", tool)
        )
        times = tuple(ratios["fxcompress"] / ratios[tool] for ratios in speedup)
        yield Row(f"int8, {name}", ours, f"onnxruntime {tool} {other}", times)
    parity = [row["parity"] for row in record["rows"].values()]
    wrong, values = (sum(part[key] for part in parity) for key in ("mismatches", "values"))
    yield Row(
        f"values of their integer kernels that are not exact, of {values / 1e6:.0f} million", f"{wrong}"
    )


def _decibels(sqnr: float | None) -> str:
    return "" if sqnr is None else f", {sqnr:.0f} dB"


def minilm_rows(record: dict[str, Any]) -> Iterator[Row]:
    """Speed and cosine, beside the fastest of onnxruntime's."""
    files = record["files"]
    ours = files["static, SmoothQuant"]
    others = [name for name in files if name.startswith("onnxruntime")]
    name = max(others, key=lambda name: files[name]["speedup"]["batch 1"])
    cells = [
        " / ".join(f"{x:.2f}×" for x in file["speedup"].values())
        + f", cosine {file['cosine_mean']:.4f}, {file['bytes'] / 1e6:.0f} MB"
        for file in (ours, files[name])
    ]
    speedups = (file["speedup"].values() for file in (ours, files[name]))
    times = tuple(mine / other for mine, other in zip(*speedups, strict=True))
    yield Row("int8, MiniLM, pretrained", cells[0], f"{name} {cells[1]}", times)


def step_rows(record: dict[str, Any]) -> Iterator[Row]:
    """A quantization-aware step over a float one."""
    for name, row in record["subjects"].items():
        ours, theirs = (row["ratios"].get(tool) for tool in ("fxcompress", "torchao"))
        without = "absent" if row["torchao"].startswith("ModuleNotFound") else "fails"
        other = f"torchao {theirs:.2f}×" if theirs else f"torchao {without}"
        times = (theirs / ours,) if theirs else ()
        yield Row(f"quantization-aware training step, {name}", f"{ours:.2f}× a float step", other, times)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


ROWS = {
    "zoo_peer": zoo_peer_rows,
    "long/zoo": zoo_rows,
    "long/fuzz": fuzz_rows,
    "compiler_speed": compiler_rows,
    "memory": memory_rows,
    "latency": latency_rows,
    "int8": int8_rows,
    "minilm": minilm_rows,
    "qat_step": step_rows,
}
"""Record → its rows."""
