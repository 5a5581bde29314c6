"""The report page of a search: one HTML file that loads nothing."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.auto.limits import COSTS
from fxcompress.auto.plots import history, pareto, svg
from fxcompress.auto.result import SearchResult
from fxcompress.auto.table import cells
from fxcompress.export.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}
td:last-child,th:last-child{text-align:left}tr.best{font-weight:bold;background:#eef6ee}
pre{background:#f6f6f6;padding:1em;overflow:auto}figure{display:inline-block;margin:0;max-width:100%}
svg{max-width:100%;height:auto}"""
_COLUMNS = ("trial", "metric", "MACs", "parameters", "bytes", "latency", "state", "algorithm, or the error")


def write_page(result: SearchResult, path: Path) -> None:
    """Write the figures, the best config and every trial to ``path``."""
    with replacing(path) as temporary:
        temporary.write_text(page(result), encoding="utf-8")


def page(result: SearchResult) -> str:
    """The page as HTML."""
    name = html.escape(result.options.name)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{_STYLE}</style>",
        f"<h1>Search “{name}”</h1>",
        _summary(result),
        "".join(f"<figure>{svg(figure)}</figure>" for figure in _figures(result)),
        "<h2>Trials</h2><p>Costs are shares of the dense model's.</p>",
        _trials(result),
        *_failures(result),
    ]
    return "\n".join(parts) + "\n"


def _figures(result: SearchResult) -> Iterable[Figure]:
    if any(row.state == "complete" for row in result.trials):
        yield history(result)
        kinds = result.options.objectives or dict.fromkeys(limit.kind for limit in result.options.limits)
        for kind in kinds or ("macs",):
            yield pareto(result, kind)


def _summary(result: SearchResult) -> str:
    limits = "; ".join(map(str, result.options.limits)) or "none"
    words = f"<p>Budget: {html.escape(limits)}. {len(result.trials)} trials.</p>"
    if not result.front:
        return words + "<p>No trial fits.</p>"
    best = result.best
    rows = "".join(
        f"<tr><td>{_amount(result.dense['measured'].get(k))}<td>{_amount(best.measured.get(k))}"
        f"<td>{best.shares.get(k, 1):.1%}<td>{COSTS[k]}"
        for k in COSTS
    )
    return (
        f"{words}<h2>Best: trial {best.number}</h2><table><tr><th>dense<th>best<th>share<th>"
        f"<tr><td>{result.dense['metric']:.4f}<td>{best.metric:.4f}<td><td>metric{rows}</table>"
        f"<details><summary>Config list</summary><pre>{html.escape(json.dumps(best.config_list, indent=1))}"
        "</pre></details>"
    )


def _trials(result: SearchResult) -> str:
    best = {row.number for row in result.front}
    lines = ["<table><tr>" + "".join(f"<th>{c}" for c in _COLUMNS)]
    for row in result.trials:
        marked = ' class="best"' if row.number in best else ""
        values = "".join(f"<td>{html.escape(cell)}" for cell in cells(row, row.number in best))
        lines.append(f"<tr{marked}>{values}")
    return "\n".join(lines) + "</table>"


def _failures(result: SearchResult) -> Iterable[str]:
    for row in result.trials:
        if row.traceback:
            told = html.escape(row.traceback)
            yield f"<details><summary>Traceback of trial {row.number}</summary><pre>{told}</pre></details>"


def _amount(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1 else f"{value:.3g}"
