"""Figures of a search: the metric over trials, and over a cost with the Pareto front."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from fxcompress.auto.limits import cost_named
from fxcompress.auto.result import Row, SearchResult, dominates
from fxcompress.errors import FxcompressError
from fxcompress.export.files import replacing
from fxcompress.page import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TOLD = {
    "macs": ("MACs per example", ""),
    "parameters": ("parameters", ""),
    "size": ("ONNX file", "bytes"),
    "latency": ("latency in onnxruntime", "s"),
    "latency_torch": ("latency in PyTorch", "s"),
}
"""Names and units (``page.text.amount``) of ``limits.COSTS``."""


class Colors(NamedTuple):
    """Of trials within the budget and above it, the front (or best so far), the dense model, the budget."""

    trial: str = "C0"
    above: str = "lightgray"
    front: str = "C2"
    dense: str = "black"
    budget: str = "C3"


def plot_front(result: SearchResult, path: str | os.PathLike[str], cost: str = "macs") -> None:
    """Draw the metric over a cost, with the front; the suffix of ``path`` says the format.

    Raises:
        FxcompressError: if matplotlib is missing.
    """
    kind = cost_named(cost, "plot_front")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FxcompressError("plot_front needs matplotlib: pip install 'fxcompress[auto]'") from error
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    pareto(figure.add_subplot(), result, kind, Colors())
    with replacing(path) as temporary:
        figure.savefig(temporary)


def history(axes: Axes, result: SearchResult, colors: Colors) -> None:
    """The metric of every trial, and the best so far within the budget."""
    rows = _complete(result)
    _dots(axes, [float(row.number) for row in rows], rows, colors)
    better = max if result.options.direction == "maximize" else min
    best: float | None = None
    line: list[tuple[int, float]] = []
    for row in rows:
        if row.fits and row.metric is not None:
            best = row.metric if best is None else better(best, row.metric)
            line.append((row.number, best))
    x, y = [n for n, _ in line], [m for _, m in line]
    axes.step(x, y, where="post", color=colors.front, label="best so far")
    axes.axhline(result.dense["metric"], color=colors.dense, linestyle=":", label="dense")
    axes.set(xlabel="trial", ylabel="metric")
    axes.locator_params(axis="x", integer=True)
    _legend(axes)


def pareto(axes: Axes, result: SearchResult, cost: str, colors: Colors) -> None:
    """The metric of every trial over a cost; the line joins those that no other surpasses in both."""
    rows = _complete(result)
    _dots(axes, [row.measured[cost] for row in rows], rows, colors)
    sign = -1 if result.options.direction == "maximize" else 1
    points = {(row.measured[cost], sign * (row.metric or 0.0)) for row in rows}
    front = sorted(p for p in points if not any(dominates(q, p) for q in points))
    line = [x for x, _ in front], [sign * y for _, y in front]
    axes.step(*line, where="post", color=colors.front, label="Pareto front")
    whole = [result.dense["measured"][cost]], [result.dense["metric"]]
    axes.plot(*whole, "*", color=colors.dense, markersize=10, label="dense")
    for limit in result.options.limits:
        if limit.kind == cost:
            amount = limit.amount * (result.dense["measured"][cost] if limit.relative else 1)
            axes.axvline(amount, color=colors.budget, linestyle="--", label="budget")
    told, unit = TOLD[cost]
    axes.set(xlabel=told, ylabel="metric")
    axes.xaxis.set_major_formatter(lambda value, _: text.amount(value, unit))
    _legend(axes)


def _dots(axes: Axes, x: list[float], rows: list[Row], colors: Colors) -> None:
    for fits, color, label in ((True, colors.trial, "trial"), (False, colors.above, "above the budget")):
        chosen = [(p, row.metric or 0.0) for p, row in zip(x, rows, strict=True) if row.fits is fits]
        if chosen:
            axes.plot([p for p, _ in chosen], [m for _, m in chosen], "o", color=color, label=label)


def _complete(result: SearchResult) -> list[Row]:
    return [row for row in result.trials if row.state == "complete"]


def _legend(axes: Axes) -> None:
    """Below the axes, where it hides nothing."""
    axes.figure.legend(loc="outside lower left", ncols=3)
