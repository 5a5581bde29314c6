"""Result files: facts of the machine, and writing that a crash cannot leave half done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
"""Records of one run of everything (``python -m benchmarks``)."""
LONG = RESULTS / "long"
"""Records of longer runs, each made by itself."""
GOAL_MISSED = 3
"""Exit status of a benchmark whose record is complete and misses a goal (1 is a crash, 2 a wrong option)."""


def machine_facts() -> dict[str, Any]:
    """Return what a reader needs to place a timing; nothing that identifies the machine."""
    # Here: a process whose memory is measured reads this module, and may be another tool's.
    from fxcompress.export.amx import has_amx

    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "architecture": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The commit that runs, shortened; empty where that is not known."""
    return _git("rev-parse", "--short", "HEAD")


def is_clean() -> bool:
    """Whether the working tree is that commit, records and pages aside."""
    generated = (":!benchmarks/results", ":!docs", ":!README.md")
    return bool(commit()) and not _git("status", "--porcelain", "--", ".", *generated)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to a temporary file beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.write("\n")
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return the recorded object, empty when there is none."""
    if not path.exists():
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(
            f"{path.name}: expected a JSON object, got {type(value).__name__}; delete it to start anew"
        )
    return value
