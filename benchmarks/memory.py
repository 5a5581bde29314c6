"""Memory: of compressing beside Torch-Pruning, of a training step, of inference; and the sizes of files.

    python benchmarks/memory.py [--only compress training inference]

Every figure is the rise of the peak resident set of a process of its own over what was resident before, with
torch and the tools imported and the model built (``memory_case.py``). Ratios:

compress   rise / the model's own bytes: capture, masks and speedup, with and without verification, beside
           Torch-Pruning's graph and step; batch 2
training   rise of three steps (SGD with momentum) / that of the plain model's: masks, fake-quantize, torchao
inference  rise of loading the file and running it / that of the dense model in PyTorch; likewise the files
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

from rich.console import Console

from benchmarks.fresh import row_of_process
from benchmarks.memory_case import COMPRESS, TRAIN
from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, read_json, write_json

MODELS = ("tv/resnet18", "tv/resnet50", "tv/resnet152", "tv/vit_b_16")
TRAINED, TRAINING_BATCH = "tv/resnet18", 16
SERVED, SERVING_BATCH = "tv/resnet50", 8
COMPRESSING_BATCH = 2
PARTS = ("compress", "training", "inference")
PLAIN, DENSE = "plain", "PyTorch, dense"
Row = dict[str, Any]


def in_process(zoo: Path, kind: str, tool: str, model: str, batch: int, folder: str = "") -> Row:
    """One case; a crash is an obstacle."""
    asked = {"zoo": str(zoo.resolve()), "kind": kind, "tool": tool, "model": model, "batch": batch}
    return row_of_process("benchmarks.memory_case", asked | {"folder": folder})


def compressing(zoo: Path, models: Sequence[str] = MODELS) -> dict[str, Row]:
    """Model → tool → figures, *ratio* over the model's own bytes."""
    rows: dict[str, Row] = {}
    for model in models:
        rows[model] = {tool: in_process(zoo, "compress", tool, model, COMPRESSING_BATCH) for tool in COMPRESS}
        for found in rows[model].values():
            if "rise" in found:
                found["ratio"] = found["rise"] / found["model"]
    return rows


def training(zoo: Path, model: str = TRAINED, batch: int = TRAINING_BATCH) -> Row:
    """Tool → figures, *ratio* over the plain step's rise."""
    rows = {tool: in_process(zoo, "training", tool, model, batch) for tool in TRAIN}
    return {"model": model, "batch": batch, "rows": _over(rows, PLAIN, ("rise",))}


def inference(zoo: Path, model: str = SERVED, batch: int = SERVING_BATCH) -> Row:
    """File → figures, *ratio* of the rise and of the file's size over those of the dense model in PyTorch."""
    with TemporaryDirectory() as folder:
        files = in_process(zoo, "files", "", model, batch, folder)
        if "obstacle" in files:
            raise RuntimeError(f"the files could not be written: {files['obstacle']}")
        rows = {
            name: in_process(zoo, "inference", file, model, batch, folder) for name, file in files.items()
        }
    return {"model": model, "batch": batch, "rows": _over(rows, DENSE, ("rise", "file"))}


def _over(rows: dict[str, Row], reference: str, keys: Sequence[str]) -> dict[str, Row]:
    base = rows[reference]
    for row in rows.values():
        if "rise" in row:
            row["ratio"] = {key: row[key] / base[key] for key in keys}
    return rows


def _mib(value: float) -> str:
    return f"{value / 2**20:.0f}"


def markdown(record: dict[str, Any]) -> str:
    """Up to three tables: compressing, training, inference."""
    parts = {"compress": _compress_table, "training": _training_table, "inference": _inference_table}
    return "\n\n".join("\n".join(write(record[part])) for part, write in parts.items() if record.get(part))


def _compress_table(rows: dict[str, Row]) -> list[str]:
    imports = [
        _mib(max((row[tool]["imports"] for row in rows.values() if "imports" in row[tool]), default=0))
        for tool in COMPRESS
    ]
    lines = [
        "Peak memory of compressing (half of the channels) over what was resident with the model built, in "
        "times the model's own bytes. Imports, the benchmark's included, are not counted: "
        f"{imports[0]} MiB (fxcompress) and {imports[2]} MiB (Torch-Pruning).",
        "",
        f"| model | MiB | {' | '.join(COMPRESS)} |",
        f"|---|---:|{'---:|' * len(COMPRESS)}",
    ]
    for model, row in rows.items():
        size = next((found["model"] for found in row.values() if "model" in found), 0)
        cells = [f"{row[tool]['ratio']:.1f}" if "ratio" in row[tool] else "fails" for tool in COMPRESS]
        lines.append(f"| {model} | {_mib(size)} | {' | '.join(cells)} |")
    return lines


def _training_table(part: Row) -> list[str]:
    lines = [
        f"Peak memory of training {part['model']}, three steps of batch {part['batch']} at 224 px.",
        "",
        "| | MiB | over plain |",
        "|---|---:|---:|",
    ]
    for tool, row in part["rows"].items():
        figures = f"{_mib(row['rise'])} | {row['ratio']['rise']:.2f}" if "rise" in row else "fails |"
        lines.append(f"| {tool} | {figures} |")
    return lines


def _inference_table(part: Row) -> list[str]:
    lines = [
        f"Loading {part['model']} from its file and running batches of {part['batch']}: peak memory and "
        "file size.",
        "",
        "| | MiB | over dense | file, MiB | over dense |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in part["rows"].items():
        cells = "fails | | |"
        if "rise" in row:
            ratio = row["ratio"]
            cells = f"{_mib(row['rise'])} | {ratio['rise']:.2f} | {_mib(row['file'])} | {ratio['file']:.2f}"
        lines.append(f"| {name} | {cells} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record after every part; ``GOAL_MISSED`` if ours failed somewhere."""
    parser = argparse.ArgumentParser(prog="memory.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, default=RESULTS / "memory.json")
    options = parser.parse_args(arguments)
    measure: dict[str, Callable[[Path], Row]] = {
        "compress": compressing,
        "training": training,
        "inference": inference,
    }
    old = read_json(options.json)  # parts that are not measured now stay
    machine = {"machine": machine_facts() | {"threads": 1}}
    record = {"benchmark": "memory", **machine, **{part: old[part] for part in PARTS if part in old}}
    for part in options.only:
        record[part] = measure[part](options.zoo)
        write_json(options.json, record)
    Console(width=120, highlight=False).print(markdown(record), markup=False)
    return GOAL_MISSED if any(map(_failed, _ours(record))) else 0


def _ours(record: dict[str, Any]) -> list[Row]:
    tools = [row for model in record.get("compress", {}).values() for row in model.items()]
    tools += [row for part in PARTS[1:] for row in record.get(part, {}).get("rows", {}).items()]
    return [row for tool, row in tools if tool not in ("Torch-Pruning", "torchao")]


def _failed(row: Row) -> bool:
    return "obstacle" in row


if __name__ == "__main__":
    sys.exit(main())
