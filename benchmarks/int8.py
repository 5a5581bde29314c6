"""Our integer ONNX files beside those of onnxruntime's own quantizers and beside float32.

    python benchmarks/int8.py [--only resnet18] [--rounds 20] [--resume]

Per model, from one run on one machine, batches of 1 and 8 (ratios over float32 onnxruntime):

fxcompress  ``compile(..., ptq)`` and ``export_onnx``, default options; 'fxcompress, dynamic' where a
            transformer may be quantized that way too
static      onnxruntime's ``quantize_static``: QDQ, u8 activations, s8 per-channel weights, all operators
dynamic     onnxruntime's ``quantize_dynamic``
parity      values of integer kernels that differ from exact integer arithmetic, of how many (``export_onnx``)
SQNR        decibels of the logits, of 16 images that were not used for calibration

``resnet50-pruned`` is ResNet-50 with half of its channels gone, quantized, over dense float32. Weights are
random (no download works here): speeds and exactness do not depend on them, SQNR says how close each tool's
file is to the float model, not how accurate a trained one would be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for `benchmarks`, when run as a script

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxcompress
from benchmarks.onnx_timing import Array, outputs, quantize_dynamic, quantize_static, speedups, timed
from benchmarks.results_file import GOAL_MISSED, RESULTS, machine_facts, read_json, write_json
from benchmarks.subject import load_zoo
from benchmarks.tables import markdown_table
from fxcompress.export.onnx import OnnxReport

PTQ = [{"quant_bits": 8, "quantizer": "ptq"}]
DYNAMIC = [{"quant_bits": 8, "quantizer": "dynamic"}]
PRUNED = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
BATCHES = (1, 8)


@dataclass(frozen=True)
class Subject:
    """A model of the zoo; ``over_static``: how much faster than onnxruntime's static file ours has to be."""

    zoo_name: str
    pruned: bool = False
    transformer: bool = False
    over_static: float | None = None
    over_float: float | None = None


SUBJECTS = {
    "resnet18": Subject("tv/resnet18"),
    "resnet50": Subject("tv/resnet50"),
    "mobilenet_v2": Subject("tv/mobilenet_v2"),
    "mobilenet_v3_large": Subject("tv/mobilenet_v3_large", over_static=1.25),
    "efficientnet_b0": Subject("tv/efficientnet_b0", over_static=1.2),
    "vit_b_16": Subject("tv/vit_b_16", transformer=True),
    "swin_t": Subject("tv/swin_t", transformer=True),
    "resnet50-pruned": Subject("tv/resnet50", pruned=True, over_float=6.0),
}


def images(count: int, seed: int) -> Tensor:
    """Random images ``[count, 3, 224, 224]`` of mean 0 and variance 1: noise of several coarsenesses."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(count, 3, 224, 224)
    for size in (4, 16, 56, 224):
        noise = torch.randn(count, 3, size, size, generator=generator)
        total += nn.functional.interpolate(noise, size=(224, 224), mode="bilinear")
    spread = total.std((1, 2, 3), keepdim=True)
    return (total - total.mean((1, 2, 3), keepdim=True)) / spread


def settled(build: Any, seed: int = 0) -> nn.Module:
    """The model with random weights and the BatchNorm statistics that it has on such images."""
    torch.manual_seed(seed)
    model: nn.Module = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # biases, and the head of a ViT: zeros would hide what becomes of them
                parameter.normal_(0, 0.05)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        for index in range(2 if norms else 0):
            model(images(8, 100 + index))
    return model.eval()


@dataclass(frozen=True)
class Files:
    """Where the tools' files are, by name, and what our export said of ours."""

    paths: dict[str, Path]
    report: OnnxReport


def write_files(subject: Subject, model: nn.Module, folder: Path) -> Files:
    """Quantize and export ``model`` by every tool."""
    calibration = [images(8, seed) for seed in range(4)]
    arrays = [[batch.numpy()] for batch in calibration]
    paths = {name: folder / f"{name}.onnx" for name in ("float32", "fxcompress", "static", "dynamic")}
    fxcompress.export_onnx(model, paths["float32"], calibration[0][:2])
    quantize_static(paths["float32"], paths["static"], arrays)
    quantize_dynamic(paths["float32"], paths["dynamic"])
    small = model
    if subject.pruned:
        small = fxcompress.speedup(fxcompress.compile(model, PRUNED, (calibration[0][:2],)))
    quantized = fxcompress.compile(small, PTQ, (calibration[0][:2],), data=calibration)
    report = fxcompress.export_onnx(quantized, paths["fxcompress"])
    if subject.transformer:
        paths["fxcompress, dynamic"] = folder / "ours_dynamic.onnx"
        module = fxcompress.compile(model, DYNAMIC, (calibration[0][:2],))
        fxcompress.export_onnx(module, paths["fxcompress, dynamic"])
    return Files(paths, report)


def sqnr(reference: Sequence[Array], candidate: Sequence[Array]) -> float:
    """``10 · log10(Σ x² / Σ (x − y)²)`` in decibels."""
    x, y = (np.concatenate([a.astype(np.float64) for a in arrays]) for arrays in (reference, candidate))
    return float(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))


def measure(subject: Subject, zoo: Path, rounds: int) -> dict[str, Any]:
    """One subject's row."""
    build = next(build for name, build, _ in load_zoo(zoo).cases(("tv",)) if name == subject.zoo_name)
    model = settled(build)
    with TemporaryDirectory() as folder:
        files = write_files(subject, model, Path(folder))
        held_out = [[images(8, seed).numpy()] for seed in (50, 51)]
        truth = outputs(files.paths["float32"], held_out)
        row: dict[str, Any] = {"speedup": {}, "seconds": {}, "sqnr": {}}
        if not subject.pruned:  # a pruned model is another function
            others = {name: path for name, path in files.paths.items() if name != "float32"}
            row["sqnr"] = {name: sqnr(truth, outputs(path, held_out)) for name, path in others.items()}
        for batch in BATCHES:
            latencies = timed(files.paths, [images(batch, 60).numpy()], rounds=rounds)
            row["speedup"][str(batch)] = speedups(latencies)
            row["seconds"][str(batch)] = {name: latency.to_dict() for name, latency in latencies.items()}
        row["bytes"] = {name: path.stat().st_size for name, path in files.paths.items()}
    return {**row, **integers_of(files.report), "goals": goals(subject, row["speedup"])}


def integers_of(report: OnnxReport) -> dict[str, Any]:
    """What the export found out: parity of every kernel, and which operators stayed float."""
    parity, lint = report.parity, report.lint
    if parity is None or lint is None:
        raise RuntimeError("the file was not compared: this processor saturates u8 × s8 products")
    largest = max((node.largest_step for node in parity.nodes), default=0.0)
    return {
        "parity": {
            "mismatches": parity.mismatches,
            "values": parity.elements,
            "largest step": largest,
            "kernels": len(parity.nodes),
            "outputs differ": sum(output.mismatches for output in parity.outputs),
        },
        "operators in float": len(lint.floats),
        "in float": [str(operator) for operator in lint.floats],
    }


def goals(subject: Subject, speedup: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Which bounds hold, per batch: no slower than the better of onnxruntime's (within 3 %) and others."""
    found: dict[str, Any] = {}
    for batch, ratios in speedup.items():
        ours = max(ratio for name, ratio in ratios.items() if name.startswith("fxcompress"))
        better = max(ratios["static"], ratios["dynamic"])
        bounds = [(ours / better, 0.97)]
        if subject.over_static is not None:
            bounds.append((ours / ratios["static"], subject.over_static))
        if subject.over_float is not None:
            bounds.append((ours, subject.over_float))
        met = all(ratio >= bound for ratio, bound in bounds)
        found[batch] = {"over the better": ours / better, "bounds": bounds, "met": met}
    return found


def table_of(rows: dict[str, dict[str, Any]]) -> Table:
    """One line per model and batch: times faster than float32 onnxruntime."""
    table = Table(box=None, pad_edge=False)
    times = ("fxcompress", "static", "dynamic", "over the better")
    for column in ("model", "batch", *times, "dB", "not exact", "float", ""):
        table.add_column(column, justify="left" if column in ("model", "") else "right")
    for name, row in rows.items():
        tools = [tool for tool in row["bytes"] if tool in row["sqnr"]]
        noise = " / ".join(f"{row['sqnr'][tool]:.0f}" for tool in tools)
        parity = row["parity"]
        for batch, ratios in row["speedup"].items():
            ours = [f"{r:.2f}" for tool, r in ratios.items() if tool.startswith("fxcompress")]
            goal = row["goals"][batch]
            table.add_row(
                name, batch, " / ".join(ours), f"{ratios['static']:.2f}", f"{ratios['dynamic']:.2f}",
                f"{goal['over the better']:.2f}", noise, f"{parity['mismatches']} of {parity['values']:,}",
                str(row["operators in float"]), "met" if goal["met"] else "MISSED",
            )  # fmt: skip
    return table


def markdown(record: dict[str, Any]) -> str:
    """The table, and what its columns are."""
    return (
        "Times faster than float32 onnxruntime: *fxcompress* static (/ dynamic); *over the better*: the\n"
        "faster of ours over the faster of onnxruntime's. *dB*: signal to noise of fxcompress / static /\n"
        "dynamic (/ fxcompress, dynamic). *not exact*: values of integer kernels. *float*: operators that\n"
        "stay float.\n\n"
        f"{markdown_table(table_of(record['rows']))}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, record after every model; returns ``GOAL_MISSED`` if one was."""
    parser = argparse.ArgumentParser(prog="int8.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--zoo", type=Path, default=Path("../shared/zoo"), help="folder with zoo.py")
    parser.add_argument("--only", nargs="+", choices=sorted(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--resume", action="store_true", help="keep the rows of the other models")
    parser.add_argument("--json", type=Path, default=RESULTS / "int8.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = read_json(options.json).get("rows", {}) if options.resume else {}
    show = partial(Console(width=150, highlight=False).print)
    for name in options.only:
        rows[name] = measure(SUBJECTS[name], options.zoo, options.rounds)
        write_json(options.json, {"benchmark": "int8", "machine": machine_facts(), "rows": rows})
        show(table_of({name: rows[name]}))
    show(table_of(rows))
    met = all(goal["met"] for row in rows.values() for goal in row["goals"].values())
    return 0 if met else GOAL_MISSED


if __name__ == "__main__":
    raise SystemExit(main())
