"""``write_report``: what a compression did, as one HTML page that loads nothing, and as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.errors import FxcompressError
from fxcompress.export.files import replacing
from fxcompress.graph.module import CompiledModule
from fxcompress.page import charts
from fxcompress.page.blocks import blocks
from fxcompress.page.collect import Extras, collect
from fxcompress.page.data import Graph, PageData, Timing, added
from fxcompress.page.drawing import draw
from fxcompress.page.html import render, safe
from fxcompress.page.svg import inline
from fxcompress.report import Report

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

    from fxcompress.export.onnx import OnnxReport
    from fxcompress.sensitivity import SensitivityAnalysis
    from fxcompress.sqnr import SqnrReport

ROWS = 60
"""Bars of a chart; more layers are added up by block."""


def write_report(
    path: str | os.PathLike[str],
    subject: CompiledModule | Report,
    *,
    onnx: OnnxReport | None = None,
    sensitivity: SensitivityAnalysis | Mapping[str, Mapping[float, float]] | None = None,
    sqnr: SqnrReport | None = None,
    metrics: Mapping[str, tuple[float, float]] | None = None,
    latency: bool | Sequence[Timing] = True,
) -> PageData:
    """Write a page about a compression to ``path``, and its figures as JSON beside it.

        fxcompress.write_report("report.html", small, metrics={"accuracy": (0.989, 0.982)})

    Parts that are not given are left out, with a line that says how to get them.

    Args:
        path: of the page, ending in ``.html``; ``report.json`` is written beside ``report.html``.
        subject: the module that ``speedup`` returned, or a report of ``fxcompress.report.make_report``.
        onnx: what ``export_onnx`` returned: integer kernels, what stayed float and why, parity.
        sensitivity: a ``SensitivityAnalysis`` that ran, or its results: layer → sparsity → metric.
        sqnr: what ``fxcompress.sqnr.sqnr`` returned.
        metrics: name → figures before and after: accuracies, losses.
        latency: measure the latency of the whole model and of each layer, dense (masks taken out) against
            small, on the example inputs; needs both modules alive. ``Timing``s are latencies of the whole
            model that were measured already, in any runtime.

    Raises:
        FxcompressError: if ``subject`` has no report, ``path`` does not end in ``.html``, or matplotlib or
            jinja2 is missing (``pip install 'fxcompress[report]'``).
        ExportError: if the folder of ``path`` does not exist.
    """
    final = Path(path)
    if final.suffix != ".html":
        raise FxcompressError(f"write_report: expected a path that ends in .html, got {str(path)!r}")
    found = collect(subject, Extras(onnx, sensitivity, sqnr, metrics), latency=latency)
    json_name = final.with_suffix(".json").name
    text = page(found, json_name)
    with replacing(final) as temporary:
        temporary.write_text(text, encoding="utf-8")
        temporary.with_name(json_name).write_text(found.to_json() + "\n", encoding="utf-8")
    return found


def page(found: PageData, json_name: str = "") -> str:
    """The page as HTML; ``json_name``: the file beside it that has the figures."""
    return render(
        "report.html.j2",
        data=found,
        json_name=json_name,
        graphs=list(_graphs(found.graph)),
        bars=list(_bars(found)),
        noise=_picture(charts.noise(found.sqnr), "noise", "Layers that rounding hurts most")
        if found.sqnr and found.sqnr.rows
        else None,
        curves=_picture(charts.curves(found.sensitivity), "curves", "Metric over sparsity by layer")
        if found.sensitivity
        else None,
    )


def _graphs(graph: Graph | None) -> Iterator[tuple[str, Markup]]:
    """The graph before and after, as far as they are known."""
    for side in ("before", "after"):
        if graph is not None and getattr(graph, side) is not None:
            yield side, safe(draw(graph, side))


def _bars(found: PageData) -> Iterator[Markup]:
    layers = [layer for layer in found.layers if layer.is_matrix]
    rows = blocks([tuple(layer.name.split(".")) for layer in layers], ROWS)
    told = "by block" if len(rows) < len(layers) else "by layer"
    for name, unit in (("channels", ""), ("parameters", ""), ("macs", ""), ("latency", "s")):
        sums = [(block, added(getattr(layers[i], name) for i in members)) for block, members in rows]
        pairs = [(block, pair) for block, pair in sums if pair is not None]
        if pairs:
            title = f"{'MACs' if name == 'macs' else name} {told}"
            yield _picture(charts.bars(title, pairs, unit), name, f"Bars of {title}, before and after")


def _picture(figure: Figure, name: str, label: str) -> Markup:
    return safe(inline(figure, name, label))
