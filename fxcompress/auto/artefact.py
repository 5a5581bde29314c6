"""What a trial leaves: files, and what these files cost.

    module  →  small.pt2, small.onnx  →  parameters, MACs, bytes, seconds

Costs are those of the files as they are loaded again, latencies on the module's example inputs, each call
alternated with one of the dense model's files, so that a busy machine slows both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fxcompress.export.archive import load, save
from fxcompress.export.onnx import export_onnx
from fxcompress.export.parity import feed, open_session
from fxcompress.graph.cost import Latency, compare_latency, count_macs, count_parameters, measure_latency
from fxcompress.graph.inputs import Inputs
from fxcompress.graph.module import CompiledModule

MODULE, ONNX = "small.pt2", "small.onnx"
SENSITIVITY = "sensitivity.csv"
"""Of the dense model, in its folder."""
ROUNDS = (15, 300)
"""Calls of each model that a latency is the median of: at least, and at most."""
SECONDS = 0.2
"""For which small models are measured, so that what else the machine does is felt by few of the calls."""


def write(module: CompiledModule, folder: Path) -> None:
    """Write ``module`` to the two files.

    Raises:
        ExportError: as ``fxcompress.save`` and ``fxcompress.export_onnx``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save(module, folder / MODULE)
    export_onnx(module, folder / ONNX)


def measure(folder: Path, dense: Path) -> dict[str, dict[str, float]]:
    """The costs (``limits.COSTS``) of the files in ``folder``.

    Returns:
        ``measured``: amounts; ``shares``: the same as shares of those of the files in the folder ``dense``.
    """
    both = {"small": load(folder / MODULE).eval(), "dense": load(dense / MODULE).eval()}
    inputs = both["dense"].example_inputs
    files = {"small": folder / ONNX, "dense": dense / ONNX}
    with torch.inference_mode():
        times = {
            "latency": _compared({n: _runtime_call(files[n], inputs) for n in both}),
            "latency_torch": _compared({n: _torch_call(both[n], inputs) for n in both}),
        }
    counts = {
        "macs": {name: count_macs(module, inputs).total for name, module in both.items()},
        "parameters": {name: count_parameters(module) for name, module in both.items()},
        "size": {name: path.stat().st_size for name, path in files.items()},
    }
    measured = {kind: float(of["small"]) for kind, of in counts.items()}
    shares = {kind: of["small"] / max(of["dense"], 1) for kind, of in counts.items()}
    for kind, latency in times.items():
        measured[kind] = latency["small"].median
        shares[kind] = latency["small"].ratio_to(latency["dense"])
    return {"measured": measured, "shares": shares}


def _compared(calls: dict[str, Callable[[], Any]]) -> dict[str, Latency]:
    first = measure_latency(calls["dense"], rounds=ROUNDS[0]).median
    rounds = min(max(round(SECONDS / max(first, 1e-6)), ROUNDS[0]), ROUNDS[1])
    return compare_latency(calls, rounds=rounds)


def _torch_call(module: CompiledModule, inputs: Inputs) -> Callable[[], Any]:
    args, kwargs = inputs
    return partial(module, *args, **kwargs)


def _runtime_call(file: Path, inputs: Inputs) -> Callable[[], Any]:
    session = open_session(file, threads=torch.get_num_threads())
    return partial(session.run, None, feed(session, inputs))
