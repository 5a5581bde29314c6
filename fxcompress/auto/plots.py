"""Figures of a search: the metric over trials, and over a cost with the Pareto front."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from fxcompress.auto.limits import COSTS, cost_named
from fxcompress.auto.result import Row, SearchResult, dominates
from fxcompress.errors import FxcompressError
from fxcompress.export.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_front(result: SearchResult, path: str | os.PathLike[str], cost: str = "macs") -> None:
    """Draw the metric over a cost, with the front; the suffix of ``path`` says the format.

    Raises:
        FxcompressError: if matplotlib is missing.
    """
    figure = pareto(result, cost_named(cost, "plot_front"))
    with replacing(path) as temporary:
        figure.savefig(temporary)


def history(result: SearchResult) -> Figure:
    """The metric of every trial, and the best so far within the budget."""
    figure, axes = _figure()
    rows = _complete(result)
    _dots(axes, [float(row.number) for row in rows], rows)
    better = max if result.options.direction == "maximize" else min
    best: float | None = None
    line: list[tuple[int, float]] = []
    for row in rows:
        if row.fits and row.metric is not None:
            best = row.metric if best is None else better(best, row.metric)
            line.append((row.number, best))
    axes.step([n for n, _ in line], [m for _, m in line], where="post", color="C2", label="best so far")
    axes.axhline(result.dense["metric"], color="gray", linestyle=":", label="dense")
    axes.set(xlabel="trial", ylabel="metric")
    axes.legend(fontsize="small")
    return figure


def pareto(result: SearchResult, cost: str) -> Figure:
    """The metric of every trial over a cost; the line joins those that no other surpasses in both."""
    figure, axes = _figure()
    rows = _complete(result)
    _dots(axes, [row.measured[cost] for row in rows], rows)
    sign = -1 if result.options.direction == "maximize" else 1
    points = {(row.measured[cost], sign * (row.metric or 0.0)) for row in rows}
    front = sorted(p for p in points if not any(dominates(q, p) for q in points))
    line = [x for x, _ in front], [sign * y for _, y in front]
    axes.step(*line, where="post", color="C2", label="Pareto front")
    axes.plot([result.dense["measured"][cost]], [result.dense["metric"]], "k*", markersize=10, label="dense")
    for limit in result.options.limits:
        if limit.kind == cost:
            amount = limit.amount * (result.dense["measured"][cost] if limit.relative else 1)
            axes.axvline(amount, color="C3", linestyle="--", label="budget")
    axes.set(xlabel=COSTS[cost], ylabel="metric")
    axes.legend(fontsize="small")
    return figure


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _dots(axes: Axes, x: list[float], rows: list[Row]) -> None:
    for fits, color, label in ((True, "C0", "trial"), (False, "lightgray", "above the budget")):
        chosen = [(p, row.metric or 0.0) for p, row in zip(x, rows, strict=True) if row.fits is fits]
        if chosen:
            axes.plot([p for p, _ in chosen], [m for _, m in chosen], "o", color=color, label=label)


def _complete(result: SearchResult) -> list[Row]:
    return [row for row in result.trials if row.state == "complete"]


def _figure() -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxcompressError("figures need matplotlib: pip install 'fxcompress[auto]'") from error
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    return figure, figure.add_subplot()
