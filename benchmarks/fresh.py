"""A case in a fresh interpreter: what crashes, hangs or holds memory there disturbs no other case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.results_file import ROOT, read_json


def row_of_process(module: str, asked: dict[str, Any], time_limit: float | None = None) -> dict[str, Any]:
    """Run ``python -m module`` with ``asked``, and the file for its row, as arguments.

    One thread: float64 grouped convolutions start a parallel region per group, a hundred times slower when
    the cores are shared.

    Args:
        time_limit: seconds.

    Returns:
        The row, or ``{"obstacle": …}`` if there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, json.dumps(asked), str(result)],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                timeout=time_limit,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"obstacle": f"time limit: not done after {time_limit:g} s"}
        if result.exists():
            return read_json(result)
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"obstacle": f"crash: exit status {done.returncode}: {last}"[:300]}
