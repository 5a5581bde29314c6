"""The charts of the page: bars before and after, curves, and bars of decibels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fxcompress.page import svg
from fxcompress.page.text import Pair, amount, arrow, decibels, shortened
from fxcompress.sqnr import SqnrReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = 20
"""Characters of a name beside a bar; the tables have the whole one."""
NOISE_ROWS = 30


@svg.style()
def bars(title: str, pairs: Sequence[tuple[str, Pair]], unit: str = "") -> Figure:
    """Two amounts per name, the later one in front of the earlier one."""
    figure, axes = _rows([name for name, _ in pairs], title)
    places = range(len(pairs))
    old, new = [pair.before for _, pair in pairs], [pair.after for _, pair in pairs]
    axes.barh(places, old, height=0.8, color=svg.BEFORE)
    axes.barh(places, new, height=0.8, color=svg.AFTER)
    end = max([*old, *new, 1e-12])
    for place, (_, pair) in enumerate(pairs):
        start = max(pair.before, pair.after) + 0.02 * end
        axes.text(start, place, arrow(pair, unit), va="center", color=svg.MUTED, size=7)
    axes.set_xlim(0, 1.45 * end)
    axes.xaxis.set_major_formatter(lambda value, _: amount(value, unit))
    axes.locator_params(axis="x", nbins=4)
    return figure


@svg.style()
def noise(report: SqnrReport) -> Figure:
    """The layers that rounding hurts most, in decibels: at their own output, and at the model's."""
    worst = report.worst()[:NOISE_ROWS]
    figure, axes = _rows([row.layer for row in worst], "signal to quantization noise, dB", 0.24)
    kinds = [("at the layer's output", svg.SERIES[0], [row.local for row in worst])]
    if all(row.end_to_end is not None for row in worst):
        ends = [row.end_to_end or 0.0 for row in worst]
        kinds.append(("at the model's output", svg.SERIES[1], ends))
    height = 0.8 / len(kinds)
    for number, (label, color, values) in enumerate(kinds):
        places = [i + (number - (len(kinds) - 1) / 2) * height for i in range(len(worst))]
        axes.barh(places, [v if math.isfinite(v) else 0.0 for v in values], height, color=color, label=label)
        for place, value in zip(places, values, strict=True):
            start = value if math.isfinite(value) else 0.0
            axes.text(start + 0.5, place, decibels(value), va="center", color=svg.MUTED, size=6)
    axes.margins(x=0.12)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


@svg.style()
def curves(results: Mapping[str, Mapping[float, float]]) -> Figure:
    """Metric over sparsity, one line per layer; colored are those whose metric falls lowest."""
    figure, axes = svg.figure(3.4)
    _title(axes, "metric over the sparsity of one layer")
    lowest = sorted(results, key=lambda layer: min(results[layer].values(), default=math.inf))
    named = lowest[: len(svg.SERIES)]
    for layer in lowest[len(named) :]:
        axes.plot(list(results[layer]), list(results[layer].values()), color=svg.LINE, linewidth=0.8)
    for layer, color in reversed(list(zip(named, svg.SERIES, strict=False))):
        axes.plot(list(results[layer]), list(results[layer].values()), ".-", color=color)
    axes.set_xlabel("sparsity")
    labels = [shortened(layer, NAME) for layer in named]
    figure.legend(axes.lines[::-1][: len(named)], labels, loc="outside lower left", ncols=2)
    return figure


def _rows(names: Sequence[str], title: str, height: float = 0.155) -> tuple[Figure, Axes]:
    """A chart with one row per name, of ``height`` inches, the first one on top."""
    figure, axes = svg.figure(0.8 + height * max(3, len(names)))
    _title(axes, title)
    axes.set_yticks(range(len(names)), [shortened(name, NAME) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", weight="bold", size=9)
