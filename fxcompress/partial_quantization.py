"""Partial quantization: the layers that rounding hurts most stay float, as many as a latency budget allows.

found = partial_quantization(model, [{"quant_bits": 8, "quantizer": "ptq"}], x, data=batches, latency=0.6)
quantized = fxcompress.compile(model, found.config_list, x, data=batches)

Layers are ranked by the noise at the model's output with one of them quantized, and a bisection finds how
many of the worst can stay float (Pandey et al., A Practical Mixed Precision Algorithm for Post-Training
Quantization, 2023). Latencies are of whole ONNX files in onnxruntime on one thread, where a float
layer among integers also costs its conversions. Only ``quantized`` or ``float`` are chosen: onnxruntime has
integer kernels for 8 bits, so fewer bits of activations do not make it faster.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from torch import nn

from fxcompress.budget import ROUNDS, one_budget
from fxcompress.compiler import compile as compile_model
from fxcompress.errors import FxcompressError
from fxcompress.export.onnx import export_onnx
from fxcompress.export.parity import feed, open_session
from fxcompress.export.tables import printed, text_table, writable
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import compare_latency
from fxcompress.graph.module import CompiledModule
from fxcompress.quantization.placement import COMPUTING
from fxcompress.sqnr import LayerSqnr, SqnrReport, sqnr


@dataclass(frozen=True)
class PartialQuantization:
    """The layers that stay float.

    Attributes:
        config_list: the one that was given, and an entry that excludes these layers.
        floats: their names, the worst first.
        latency: of the model in onnxruntime, as a share of the float model's; at most the budget.
        measured: what was tried: number of float layers → latency.
        sqnr: of the model with every layer quantized; ``left``: decibels at its output with ``floats`` float.
    """

    config_list: list[dict[str, Any]]
    floats: tuple[str, ...]
    latency: float
    measured: dict[int, float]
    sqnr: SqnrReport
    left: float

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return everything as JSON text; an infinite figure is the string ``"inf"``."""
        return json.dumps(writable(asdict(self)), indent=indent)

    def __str__(self) -> str:
        """What was tried, and the layers with the one that rounding hurts most first."""
        title = (
            f"{len(self.floats)} layers float: {self.latency:.2f} of the float latency, {self.left:.1f} dB "
            f"at the output ({self.sqnr.total:.1f} with none)"
        )
        tried = text_table("float layers", "latency")
        for number, latency in sorted(self.measured.items()):
            tried.add_row(str(number), f"{latency:.2f}")
        layers = text_table("layer", "stays", "dB at the output")
        for row in _ranked(self.sqnr):
            layers.add_row(
                escape(row.layer), "float" if row.layer in self.floats else "", f"{row.end_to_end:.1f}"
            )
        return printed(printed(title, tried) + "\n", layers)


def partial_quantization(
    model: nn.Module,
    config_list: list[dict[str, Any]],
    example_inputs: Any = None,
    *,
    data: Iterable[Any],
    latency: float,
) -> PartialQuantization:
    """Keep as many layers float as the budget allows.

    Costs one ``sqnr`` and about log₂(layers) ONNX files, whose latencies on the example inputs are measured.

    Args:
        model: as for ``compile``; nothing of it changes.
        config_list: as for ``compile``; says how layers are quantized (``weight_only`` as well as ``ptq``).
        example_inputs: as for ``compile``.
        data: batches to calibrate and to measure on (a collection: it is read several times).
        latency: the share of the float model's latency in onnxruntime on this machine, in (0, 1).

    Raises:
        ConfigError: for a budget that is none.
        FxcompressError: if the budget cannot be met; the message says how far it goes.
    """
    one_budget("partial_quantization", latency=latency)
    dense = capture(model, example_inputs)
    batches = list(data)
    quantized = compile_model(dense, config_list, data=batches)
    report = sqnr(quantized, batches)
    worst = [row.layer for row in _ranked(report)]

    def entries(number: int) -> list[dict[str, Any]]:
        return [{"exclude": True, "op_names": worst[:number]}] if number else []

    def compiled(number: int) -> CompiledModule:
        return compile_model(dense, [*config_list, *entries(number)], data=batches)

    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "float.onnx"
        export_onnx(dense, reference, verify=False)
        measured = {0: _share(quantized, reference)}
        if measured[0] > latency:
            raise FxcompressError(
                f"partial_quantization: latency={latency}: even with every layer quantized {measured[0]:.2f} "
                "of the float latency are left; select more layers, or raise the budget "
                "(report.lint of fxcompress.export_onnx says what stayed float, and why)"
            )
        low, high = 0, len(worst)  # with all of them float nothing would be quantized
        while high - low > 1:
            middle = (low + high) // 2
            measured[middle] = _share(compiled(middle), reference)
            low, high = (middle, high) if measured[middle] <= latency else (low, middle)
    left = sqnr(compiled(low), batches, end_to_end=False).total
    return PartialQuantization(
        [*config_list, *entries(low)], tuple(worst[:low]), measured[low], measured, report, left
    )


def _ranked(report: SqnrReport) -> list[LayerSqnr]:
    """The layers worth quantizing for their own sake, the worst first; what lies between follows them."""
    return [row for row in report.worst() if row.op in COMPUTING]


def _share(module: CompiledModule, reference: Path) -> float:
    """The latency of ``module`` in onnxruntime over that of the file ``reference``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        export_onnx(module, path, verify=False)
        runs = {}
        for name, file in {"quantized": path, "float": reference}.items():
            session = open_session(file, threads=1)  # more would wait busily, and slow the other session
            runs[name] = functools.partial(session.run, None, feed(session, module.example_inputs))
        times = compare_latency(runs, rounds=ROUNDS)
    return times["quantized"].ratio_to(times["float"])
