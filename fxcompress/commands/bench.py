"""``fxcompress bench``: latency of model files, PyTorch and onnxruntime side by side."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.commands.found import Found, add_json, row, table
from fxcompress.commands.options import add_inputs, check_model_file, new_command, positive

if TYPE_CHECKING:
    from fxcompress.graph.cost import Latency

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress bench dense.onnx small.onnx small.pt2
fxcompress bench dense.onnx int8.onnx --input 1x3x224x224 --rounds 200 --json
"""


def add_bench(commands: Commands) -> None:
    """Latency of model files."""
    text = "measure how long model files take on the same inputs, .pt2 in PyTorch and .onnx in onnxruntime"
    more = "Calls alternate, so that whatever else the machine does slows all alike."
    parser = new_command(commands, "bench", text, _EXAMPLES, more)
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help=".onnx or .pt2; the first is the reference"
    )
    add_inputs(parser, "those of the first .pt2 file, or random ones")
    parser.add_argument(
        "--rounds", type=positive, default=50, metavar="N", help="timed calls of each (default: 50)"
    )
    parser.add_argument(
        "--threads", type=positive, default=1, metavar="N", help="of both runtimes (default: 1)"
    )
    add_json(parser)
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> Found:
    """Time them against each other."""
    for path in options.files:
        check_model_file(path)

    import torch

    from fxcompress.commands.runners import inputs_for, opened
    from fxcompress.graph.cost import compare_latency

    torch.set_num_threads(options.threads)
    runners = [opened(path, options.threads) for path in dict.fromkeys(options.files)]
    inputs = inputs_for(runners, options.inputs)
    for runner in runners:
        runner.checked(inputs)
    times = compare_latency({str(r.path): r.bound(inputs) for r in runners}, rounds=options.rounds)
    reference = times[str(runners[0].path)]
    made = table(
        f"milliseconds per call ({options.rounds} each, threads: {options.threads}); ratio: over the first",
        "file", "runtime", "median", "quartiles", "ratio", left=2,
    )  # fmt: skip
    rows = []
    for runner in runners:
        found = times[str(runner.path)]
        ratio = found.ratio_to(reference)
        rows.append({"file": str(runner.path), "runtime": runner.runtime, **found.to_dict(), "ratio": ratio})
        lower, upper = (f"{1e3 * seconds:.3f}" for seconds in found.quartiles)
        row(
            made,
            runner.path,
            runner.runtime,
            f"{1e3 * found.median:.3f}",
            f"{lower} to {upper}",
            f"{ratio:.3f}",
        )
    advice = _advice({runner.path: times[str(runner.path)] for runner in runners})
    facts = {"rounds": options.rounds, "threads": options.threads, "files": rows, "advice": advice}
    return Found(facts, (made, *(f"\n{line}" for line in advice)))


def _advice(times: Mapping[Path, Latency]) -> list[str]:
    """Lines about quantized ONNX files that are no faster than the fastest in float32."""
    from fxcompress.commands.gain import is_quantized, without_gain

    files = [path for path in times if path.suffix == ".onnx"]
    quantized = {path: is_quantized(path) for path in files}
    floats = [path for path in files if not quantized[path]]
    if not floats:
        return []
    fastest = min(floats, key=lambda path: times[path].median)
    ratios = {path: times[path].ratio_to(times[fastest]) for path in files if quantized[path]}
    lines = (without_gain(str(path), f"{fastest}, in float32,", ratio) for path, ratio in ratios.items())
    return [line for line in lines if line is not None]
