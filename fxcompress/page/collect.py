"""What there is to say about a compression, gathered into ``PageData``, and how to get what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import fx, nn

from fxcompress.errors import FxcompressError
from fxcompress.graph.cost import Call
from fxcompress.graph.layer_latency import compare_layer_latency
from fxcompress.graph.module import CompiledModule
from fxcompress.page import data
from fxcompress.page.graph import layer_graph
from fxcompress.report import Report

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


def collect(subject: CompiledModule | Report, extras: Extras, *, latency: bool = True) -> data.PageData:
    """Gather what the page shows; measures latencies when asked to and both modules are alive.

    Raises:
        FxcompressError: if ``subject`` is no report and has none.
    """
    report = _report_of(subject)
    modules = report.subjects
    before, after = (modules.before, modules.after) if modules else (None, None)
    after = subject if isinstance(subject, nn.Module) else after
    seconds: dict[str, data.Amounts] = {}
    if latency and modules and before is not None and after is not None:
        if report.latency is None:
            report = report.measure_latency(before, after)
        if isinstance(before, fx.GraphModule) and isinstance(after, fx.GraphModule):
            seconds = _seconds(before, after, modules.inputs)
    layers = tuple(_layers(report, seconds))
    others = [seconds[name] for name in seconds.keys() - {layer.name for layer in layers}]
    drawn = next((m for m in (before, after) if isinstance(m, fx.GraphModule)), None)
    found = data.PageData(
        model="model" if after is None else str(after._get_name()),
        totals=tuple(_totals(report, extras)),
        layers=layers,
        other_latency=data.added(others),
        kept=report.kept,
        notes=report.notes,
        graph=None if drawn is None else layer_graph(drawn, layers),
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


def _seconds(before: fx.GraphModule, after: fx.GraphModule, inputs: Call) -> dict[str, data.Amounts]:
    """Median seconds per layer, and per operator without weights."""
    timed = compare_layer_latency({"before": before, "after": after}, inputs)
    old, new = ({name: time.median for name, time in side.items()} for side in timed.values())
    return {n: data.Amounts(old.get(n, 0.0), new.get(n, 0.0)) for n in dict.fromkeys([*old, *new])}


def _totals(report: Report, extras: Extras) -> Iterator[data.Total]:
    for name, (old, new) in (extras.metrics or {}).items():
        yield data.Total(name, old, new, "metric")
    yield data.Total("parameters", report.parameters.before, report.parameters.after)
    macs = report.macs
    if macs is not None:
        yield data.Total("MACs per example", macs.before, macs.after)
    yield data.Total("size in memory", report.bytes.before, report.bytes.after, "bytes")
    if report.latency is not None:
        old, new = (latency.median for latency in report.latency)
        yield data.Total("latency in PyTorch", old, new, "s")
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
    if extras.sensitivity is None:
        yield data.Missing("Sensitivity", "sensitivity=SensitivityAnalysis(...), after its run()")
    if extras.sqnr is None:
        yield data.Missing("Quantization error", "sqnr=fxcompress.sqnr.sqnr(quantized, batches)")
    if extras.onnx is None:
        yield data.Missing("ONNX", "onnx=fxcompress.export_onnx(module, path)")
