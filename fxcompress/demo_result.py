"""What ``fxcompress demo`` found: two models side by side, as a table and as JSON.

Accuracies are fractions of the test images, file sizes bytes, latencies seconds per batch on one thread. A
ratio of latencies is the median over rounds in which both models ran, so a busy machine moves it little.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Measured:
    """One model and its two files."""

    accuracy: float
    accuracy_onnx: float
    parameters: int
    macs: int
    bytes_pt2: int
    bytes_onnx: int
    seconds_torch: float
    seconds_onnx: float


@dataclass(frozen=True)
class DemoResult:
    """``ratio_torch`` and ``ratio_onnx`` are the time of one batch after by before."""

    before: Measured
    after: Measured
    ratio_torch: float
    ratio_onnx: float
    batch: int
    options: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=lambda: machine_facts())

    def facts(self) -> dict[str, Any]:
        """The result as JSON-ready dicts, strings and numbers."""
        return {"benchmark": "demo", **asdict(self)}

    def to_json(self) -> str:
        """``facts`` as JSON text, with a final newline."""
        return json.dumps(self.facts(), indent=1) + "\n"

    def table(self) -> Table:
        """One row per amount: before, after, and by what factor it changed."""
        a, b = self.before, self.after
        table = Table(title="fxcompress demo", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
        for column in ("", "before", "after", "change"):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        table.add_row("accuracy, PyTorch", *_percent(a.accuracy, b.accuracy))
        table.add_row("accuracy, onnxruntime", *_percent(a.accuracy_onnx, b.accuracy_onnx))
        table.add_row("parameters", *_amounts(a.parameters, b.parameters, "fewer"))
        table.add_row("MACs per image", *_amounts(a.macs, b.macs, "fewer"))
        table.add_row("PyTorch file, bytes", *_amounts(a.bytes_pt2, b.bytes_pt2, "smaller"))
        table.add_row("ONNX file, bytes", *_amounts(a.bytes_onnx, b.bytes_onnx, "smaller"))
        latency = f"ms per batch of {self.batch}"
        table.add_row(
            f"PyTorch, {latency}", *_seconds(a.seconds_torch, b.seconds_torch), _faster(self.ratio_torch)
        )
        table.add_row(
            f"onnxruntime, {latency}", *_seconds(a.seconds_onnx, b.seconds_onnx), _faster(self.ratio_onnx)
        )
        return table


def machine_facts() -> dict[str, Any]:
    """What a reader needs to place a timing; nothing that identifies the machine."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _percent(before: float, after: float) -> tuple[str, str, str]:
    return f"{before:.1%}", f"{after:.1%}", f"{100 * (after - before):+.1f} points"


def _amounts(before: int, after: int, word: str) -> tuple[str, str, str]:
    return f"{before:,}", f"{after:,}", f"{before / max(after, 1):.1f}× {word}"


def _seconds(before: float, after: float) -> tuple[str, str]:
    return f"{1e3 * before:.2f}", f"{1e3 * after:.2f}"


def _faster(ratio: float) -> str:
    return f"{1 / ratio:.1f}× faster" if ratio <= 1 else f"{ratio:.1f}× slower"
