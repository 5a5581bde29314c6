"""The report page of a search, and beside the best model that of what became of the dense one.

folder/report.html             the search: dense and best, metric over trials and costs, every trial
folder/best/report.html        the best model layer by layer, as ``fxcompress.write_report`` writes it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.auto import artefact
from fxcompress.auto.plots import TOLD, Colors, history, pareto
from fxcompress.auto.result import SearchResult
from fxcompress.auto.table import cells
from fxcompress.export.archive import load
from fxcompress.export.files import replacing
from fxcompress.export.tables import read_curves
from fxcompress.page import charts, write_report
from fxcompress.page.data import Total
from fxcompress.page.html import render, safe
from fxcompress.page.svg import LINE, SERIES, TEXT, figure, inline, style
from fxcompress.report import make_report

if TYPE_CHECKING:
    from markupsafe import Markup

Curves = Mapping[str, Mapping[float, float]]
_BEST = "best/report.html"
_COLUMNS = ("trial", "metric", "MACs", "parameters", "bytes", "latency", "state", "algorithm, or the error")
_COLORS = Colors(trial=SERIES[0], above=LINE, front=SERIES[2], dense=TEXT, budget=SERIES[1])
_HEIGHT = 2.9


def write_pages(result: SearchResult, folder: Path) -> None:
    """Write the page of the search, and that of its best model where its files are here."""
    file = folder / "dense" / artefact.SENSITIVITY
    curves = read_curves(file, None, "a sensitivity analysis") if file.is_file() else {}
    link = _BEST if _write_best(result, folder, curves) else ""
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page(result, curves, link), encoding="utf-8")


def _write_best(result: SearchResult, folder: Path, curves: Curves) -> bool:
    """Write the page of the best model; whether there is one and its files are on this machine."""
    best = result.best if result.front else None
    if best is None or best.folder is None:
        return False
    files = [place / artefact.MODULE for place in (folder / "dense", best.folder)]
    if not all(file.is_file() for file in files):
        return False
    dense, small = (load(file).eval() for file in files)
    report = make_report(dense, small, dense.example_inputs)
    metrics = {"metric": (result.dense["metric"], best.metric or 0.0)}
    write_report(folder / _BEST, report, metrics=metrics, sensitivity=curves or None)
    return True


def page(result: SearchResult, sensitivity: Curves, link: str = "") -> str:
    """The page of the search as HTML; ``link``: the page of the best model."""
    front = {row.number for row in result.front}
    return render(
        "search.html.j2",
        name=result.options.name,
        limits=list(map(str, result.options.limits)),
        best=result.best if result.front else None,
        totals=list(_totals(result)),
        link=link,
        charts=_charts(result),
        sensitivity=sensitivity,
        curves=safe(inline(charts.curves(sensitivity), "curves", "Metric over sparsity by layer"))
        if sensitivity
        else None,
        columns=_COLUMNS,
        trials=[(cells(row, row.number in front), row.number in front) for row in result.trials],
        rows=result.trials,
        params=list(dict.fromkeys(name for row in result.trials for name in row.params)),
    )


def _totals(result: SearchResult) -> Iterator[Total]:
    if result.front:
        best = result.best
        yield Total("metric", result.dense["metric"], best.metric, "metric")
        for kind, (told, unit) in TOLD.items():
            old, new = result.dense["measured"].get(kind), best.measured.get(kind)
            if unit == "s" and new is not None:  # the dense model's in the same minute
                old = new / best.shares[kind]
            yield Total(told, old, new, unit)


@style()
def _charts(result: SearchResult) -> list[Markup]:
    """The metric over trials, and over every cost that the search is about."""
    if not any(row.state == "complete" for row in result.trials):
        return []
    drawn, axes = figure(_HEIGHT)
    history(axes, result, _COLORS)
    found = [safe(inline(drawn, "history", "Metric of every trial"))]
    kinds = result.options.objectives or dict.fromkeys(limit.kind for limit in result.options.limits)
    for kind in kinds or ("macs",):
        drawn, axes = figure(_HEIGHT)
        pareto(axes, result, kind, _COLORS)
        found.append(safe(inline(drawn, f"over-{kind}", f"Metric over {TOLD[kind][0]}")))
    return found
