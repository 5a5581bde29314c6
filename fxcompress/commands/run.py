"""``fxcompress run``: a model file on given or random inputs; its outputs as arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.commands.found import Found, add_json, row, table
from fxcompress.commands.options import add_inputs, check_model_file, check_target, new_command

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress run small.onnx --input images.npy --out logits.npz
fxcompress run small.pt2 --input 8x3x224x224 --json
"""


def add_run(commands: Commands) -> None:
    """Outputs of a model file."""
    text = "run an ONNX file in onnxruntime or a .pt2 file in PyTorch, and write what it returns"
    parser = new_command(commands, "run", text, _EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help=".onnx or .pt2")
    add_inputs(parser, "those of the .pt2 file, or random ones")
    parser.add_argument("--out", type=Path, metavar="FILE", help="an .npz file, one array for each output")
    add_json(parser)
    parser.set_defaults(run=run_run)


def run_run(options: argparse.Namespace) -> Found:
    """Run it once."""
    check_model_file(options.file)
    if options.out is not None:
        check_target(options.out, ".npz")

    import numpy as np

    from fxcompress.commands.runners import inputs_for, opened
    from fxcompress.export.files import replacing

    runner = opened(options.file)
    outputs = runner.checked(inputs_for([runner], options.inputs))
    if options.out is not None:
        with replacing(options.out) as temporary:
            np.savez(temporary, allow_pickle=False, **outputs)
    made = table(
        f"{options.file} in {runner.runtime}", "output", "type", "shape", "least", "greatest", left=3
    )
    facts = []
    for name, array in outputs.items():
        least, greatest = (float(array.min()), float(array.max())) if array.size else (None, None)
        shape = "×".join(map(str, array.shape)) or "scalar"
        facts.append(
            {
                "name": name,
                "dtype": str(array.dtype),
                "shape": list(array.shape),
                "least": least,
                "greatest": greatest,
            }
        )
        row(made, name, array.dtype, shape, *(None if v is None else f"{v:.6g}" for v in (least, greatest)))
    written = None if options.out is None else str(options.out)
    found = {"file": str(options.file), "runtime": runner.runtime, "outputs": facts, "out": written}
    return Found(found, (made, *([f"\nwritten: {written}"] if written else [])))
