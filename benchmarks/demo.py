"""The main job on real input: ``fxcompress demo``, before and after.

    python benchmarks/demo.py

A residual convnet learns scikit-learn's digits, loses half of its channels, is fine-tuned under masks and
exported; accuracy of both models in PyTorch and in onnxruntime, sizes, MACs, and latency of a batch of 64 on
one thread, both models in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

from rich.console import Console

from benchmarks.results_file import RESULTS, machine_facts, write_json
from benchmarks.tables import markdown_table
from fxcompress.demo import DemoOptions, run_demo
from fxcompress.demo_result import DemoResult, Measured


def result_of(record: dict[str, Any]) -> DemoResult:
    """The result on record."""
    kept = {key: record[key] for key in ("ratio_torch", "ratio_onnx", "batch", "options", "machine")}
    return DemoResult(Measured(**record["before"]), Measured(**record["after"]), **kept)


def markdown(record: dict[str, Any]) -> str:
    """The table that the command prints."""
    table = result_of(record).table()
    table.title = None
    return markdown_table(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, record."""
    parser = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="two epochs on few images")
    parser.add_argument("--json", type=Path, default=RESULTS / "demo.json")
    options = parser.parse_args(arguments)
    console = Console(width=110, highlight=False)
    with TemporaryDirectory() as folder:
        asked = DemoOptions(Path(folder), options.epochs, 0.5, 0, options.quick, None)
        result = run_demo(asked, console)
    console.print(result.table())
    write_json(options.json, result.facts() | {"machine": machine_facts()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
