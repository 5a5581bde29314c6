"""What there is to say about a compression, gathered into ``PageData``, and how to get what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fxcompress.errors import FxcompressError
from fxcompress.graph.cost import Call
from fxcompress.graph.layer_latency import compare_layer_latency
from fxcompress.graph.module import CompiledModule
from fxcompress.page import data, text
from fxcompress.page.graph import layer_graph
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.report import Report, Subjects, dense_of

if TYPE_CHECKING:
    from fxcompress.export.onnx import OnnxReport
    from fxcompress.sensitivity import SensitivityAnalysis
    from fxcompress.sqnr import SqnrReport


@dataclass(frozen=True)
class Extras:
    """What was measured besides the report itself; each may be missing."""

    onnx: OnnxReport | None = None
    sensitivity: SensitivityAnalysis | Mapping[str, Mapping[float, float]] | None = None
    sqnr: SqnrReport | None = None
    metrics: Mapping[str, tuple[float, float]] | None = None


def collect(
    subject: CompiledModule | Report, extras: Extras, *, latency: bool | Sequence[data.Timing] = True
) -> data.PageData:
    """Gather what the page shows; measures latencies when asked to and both modules are alive, those of the
    whole model only where none are given.

    Raises:
        FxcompressError: if ``subject`` is no report and has none.
    """
    report = _report_of(subject)
    modules = report.subjects
    before, after = (modules.before, modules.after) if modules else (None, None)
    after = subject if isinstance(subject, nn.Module) else after
    dense = None if before is None else dense_of(before)
    unmasked = before is not None and dense is before
    timings = _known(report) if isinstance(latency, bool) else tuple(latency)
    seconds: dict[str, data.Amounts] = {}
    if latency and modules and dense is not None and after is not None:
        timings = timings or (_timed(report, modules, dense, after),)
        if isinstance(dense, fx.GraphModule) and isinstance(after, fx.GraphModule):
            seconds = _seconds(dense, after, modules.inputs)
    layers = tuple(_layers(report, seconds))
    others = [seconds[name] for name in seconds.keys() - {layer.name for layer in layers}]
    old, new = (module if isinstance(module, fx.GraphModule) else None for module in (dense, after))
    found = data.PageData(
        model="model" if after is None else str(after._get_name()),
        totals=tuple(_totals(report, extras, timings)),
        layers=layers,
        other_latency=data.added(others),
        timing=(*(f"Latency in {t.runtime}: {t.told}" for t in timings), *([_BY_LAYER] if seconds else [])),
        kept=None if unmasked and not report.kept else report.kept,
        notes=report.notes,
        graph=layer_graph(old, new, layers),
        sensitivity=_curves(extras.sensitivity),
        sqnr=extras.sqnr,
        onnx=None if extras.onnx is None else _onnx(extras.onnx),
        missing=(),
    )
    return replace(found, missing=tuple(_missing(found, extras)))


def _report_of(subject: CompiledModule | Report) -> Report:
    report = subject if isinstance(subject, Report) else getattr(subject, "report", None)
    if not isinstance(report, Report):
        raise FxcompressError(
            f"write_report: expected a module that speedup made, or a report, got {type(subject).__name__} "
            "without a report; for any two modules give fxcompress.report.make_report(before, after, inputs)"
        )
    return report


_PASSES = 10
_BY_LAYER = (
    f"Latency by layer: both graphs, run operator by operator in PyTorch, the median of {_PASSES} "
    "passes; what applies a layer's weight counts as the layer. The sum is above the latency of the model."
)


def _known(report: Report) -> tuple[data.Timing, ...]:
    """The latencies that a report has."""
    if report.latency is None:
        return ()
    calls = len(report.latency[0].seconds)
    return (data.Timing("PyTorch", *report.latency, f"the report's own, the median of {calls} calls."),)


def _timed(report: Report, modules: Subjects, dense: nn.Module, after: nn.Module) -> data.Timing:
    """Those of the dense model and what became of it, measured now."""
    latency = report.measure_latency(dense, after).latency
    if latency is None:
        raise TypeError("measure_latency gave no latency")
    shapes = ", ".join(text.shape(x.shape) for x in tree_leaves(modules.inputs) if isinstance(x, Tensor))
    threads, calls = torch.get_num_threads(), len(latency[0].seconds)
    told = [
        f"one call on the example inputs ({shapes}), eval mode, {threads} thread{'s' * (threads > 1)}, the "
        f"median of {calls} calls that alternate."
    ]
    if dense is not modules.before:
        told.append("Before is the dense model: the module before the speedup, its masks taken out.")
    if any(isinstance(module, CompiledModule) and quantizers(module) for module in (dense, after)):
        told.append("Rounding is simulated, which takes time that integer kernels do not.")
    return data.Timing("PyTorch", *latency, " ".join(told))


def _seconds(before: fx.GraphModule, after: fx.GraphModule, inputs: Call) -> dict[str, data.Amounts]:
    """Median seconds per layer, and per operator without weights."""
    timed = compare_layer_latency({"before": before, "after": after}, inputs, rounds=_PASSES)
    old, new = ({name: time.median for name, time in side.items()} for side in timed.values())
    return {n: data.Amounts(old.get(n, 0.0), new.get(n, 0.0)) for n in dict.fromkeys([*old, *new])}


def _totals(report: Report, extras: Extras, timings: Iterable[data.Timing]) -> Iterator[data.Total]:
    for name, (old, new) in (extras.metrics or {}).items():
        yield data.Total(name, old, new, "metric")
    yield data.Total("parameters", report.parameters.before, report.parameters.after)
    macs = report.macs
    if macs is not None:
        yield data.Total("MACs per example", macs.before, macs.after)
    yield data.Total("size in memory", report.bytes.before, report.bytes.after, "bytes")
    for timing in timings:
        old, new = timing.before.median, timing.after.median
        yield data.Total(f"latency in {timing.runtime}", old, new, "s")
    if extras.onnx is not None and extras.onnx.path.is_file():
        yield data.Total("ONNX file", None, _size(extras.onnx.path), "bytes")


def _layers(report: Report, seconds: Mapping[str, data.Amounts]) -> Iterator[data.Layer]:
    macs = report.macs_by_layer
    for row in report.layers:
        yield data.Layer(
            row.name,
            row.type,
            row.before,
            row.after,
            row.parameters,
            row.channels,
            macs.get(row.name),
            seconds.get(row.name),
        )


def _curves(
    given: SensitivityAnalysis | Mapping[str, Mapping[float, float]] | None,
) -> dict[str, dict[float, float]] | None:
    if given is None:
        return None
    results = given if isinstance(given, Mapping) else given.results
    return {layer: dict(sorted(curve.items())) for layer, curve in results.items()}


def _onnx(report: OnnxReport) -> data.Onnx:
    lint, parity = report.lint, report.parity
    kernels = None
    floats: tuple[data.FloatOperator, ...] = ()
    if lint is not None:
        kernels = dict(sorted(Counter(o.kernel for o in lint.operators if o.integer).items()))
        floats = tuple(
            data.FloatOperator(o.layer, o.op, o.reason.what, o.reason.remedy)
            for o in lint.floats
            if o.reason is not None
        )
    return data.Onnx(
        file=report.path.name,
        opset=report.opset,
        bytes=_size(report.path),
        max_relative_difference=report.max_relative_difference,
        batches=report.batches,
        kernels=kernels,
        floats=floats,
        parity=data.Parity(len(parity.nodes), parity.elements, parity.mismatches) if parity else None,
        notes=report.notes,
    )


def _size(path: Path) -> int | None:
    """Bytes of the file with its external data, ``None`` when it has been moved."""
    parts = [part for part in (path, path.with_name(f"{path.name}.data")) if part.is_file()]
    return sum(part.stat().st_size for part in parts) if path.is_file() else None


def _missing(found: data.PageData, extras: Extras) -> Iterator[data.Missing]:
    """What the page leaves out, and the argument that brings it."""
    units = {total.unit for total in found.totals}
    if "metric" not in units:
        yield data.Missing("Metrics", "metrics={'accuracy': (before, after)}")
    if "MACs per example" not in {total.name for total in found.totals}:
        yield data.Missing("MACs", "none are counted where shapes depend on tensor values")
    if "s" not in units:
        yield data.Missing("Latency", "latency=True, while the module before the speedup is alive")
    elif not any(layer.latency for layer in found.layers):
        yield data.Missing("Latency by layer", "latency=True with two graph modules (fxcompress.capture)")
    if found.graph is None:
        yield data.Missing("Graph", "the module that speedup returned, instead of its report alone")
    elif found.graph.before is None or found.graph.after is None:
        gone = "before" if found.graph.before is None else "after"
        yield data.Missing(f"Graph {gone}", f"a graph module (fxcompress.capture) {gone} that is still alive")
    if extras.sensitivity is None:
        yield data.Missing("Sensitivity", "sensitivity=SensitivityAnalysis(...), after its run()")
    if extras.sqnr is None:
        yield data.Missing("Quantization error", "sqnr=fxcompress.sqnr.sqnr(quantized, batches)")
    if extras.onnx is None:
        yield data.Missing("ONNX", "onnx=fxcompress.export_onnx(module, path)")
