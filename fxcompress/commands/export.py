"""``fxcompress export``: an ONNX file, its lint and its parity with onnxruntime."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.commands.found import Found, add_json
from fxcompress.commands.options import add_amx, add_model, check_model, check_target, new_command

if TYPE_CHECKING:
    from fxcompress.export.onnx import OnnxReport

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress export small.pt2 --out small.onnx
fxcompress export models.resnet:make --weights best.pt --input 1x3x224x224 --out resnet.onnx --opset 20
"""


def add_export(commands: Commands) -> None:
    """A model as ONNX."""
    text = "write a model as ONNX, compare it with onnxruntime, and say what runs on integers"
    parser = new_command(commands, "export", text, _EXAMPLES)
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the ONNX file")
    parser.add_argument("--opset", type=int, default=18, help="of the file, 18 to 21 (default: 18)")
    parser.add_argument("--fixed-batch", action="store_true", help="do not leave the batch size open")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with onnxruntime")
    add_amx(parser)
    add_json(parser)
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> Found:
    """Export and compare."""
    check_model(options)
    check_target(options.out, ".onnx")

    from fxcompress.commands.models import captured
    from fxcompress.export.onnx import export_onnx

    report = export_onnx(
        captured(options),
        options.out,
        opset_version=options.opset,
        verify=not options.no_verify,
        dynamic_batch=not options.fixed_batch,
        amx=options.amx,
    )
    return Found({"model": options.model, **onnx_facts(report)}, tuple(onnx_lines(report, options.out)))


def onnx_facts(report: OnnxReport) -> dict[str, Any]:
    """What a report of ``export_onnx`` says, ready for JSON."""
    lint, parity = report.lint, report.parity
    return {
        "onnx": str(report.path),
        "bytes": report.path.stat().st_size,
        "opset": report.opset,
        "inputs": list(report.inputs),
        "outputs": list(report.outputs),
        "batch_is_dynamic": report.batch_is_dynamic,
        "max_relative_difference": report.max_relative_difference,
        "batches": list(report.batches),
        "operators": lint
        and [
            {
                "layer": operator.layer,
                "op": operator.op,
                "kernel": operator.kernel,
                "reason": operator.reason and asdict(operator.reason),
            }
            for operator in lint.operators
        ],
        "parity": parity
        and {"elements": parity.elements, "mismatches": parity.mismatches, "floats": list(parity.floats)},
        "for_amx": report.for_amx,
        "notes": list(report.notes),
    }


def onnx_lines(report: OnnxReport, path: Path) -> list[str]:
    """The same for people; ``path`` is where the file will be."""
    size = f"{report.path.stat().st_size:,} bytes, opset {report.opset}"
    batch = "open" if report.batch_is_dynamic else "fixed"
    lines = [f"{path}: {size}, inputs {', '.join(report.inputs)}, batch {batch}"]
    if report.max_relative_difference is None:
        lines.append("not compared with onnxruntime")
    else:
        batches = " and ".join(map(str, report.batches))
        lines.append(
            f"largest difference to PyTorch in onnxruntime: {report.max_relative_difference:.1e} of the "
            f"largest output (batches of {batches})"
        )
    lines += [str(part) for part in (report.lint, report.parity) if part is not None]
    if report.for_amx:
        lines.append(f"{report.for_amx} convolutions are laid out for AMX (--no-amx: for processors without)")
    return [*lines, *(f"note: {note}" for note in report.notes)]
