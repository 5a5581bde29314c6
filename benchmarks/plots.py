"""Pictures of the page, as SVG files that stand alone: text stays text, one light look, nothing is loaded.

What a picture shows is in the table beside it too; its ``aria-label`` says what to see. The points drawn are
in its ``<desc>``, so that a test can tell a picture that is older than its record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from benchmarks.compiler_speed import timings_of
from fxcompress.page import svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {"--text": "#1c2430", "--muted": "#5a6573", "--line": "#d5dbe2", "--before": "#b9c6d6",
         "--after": "#1f6fb2", "--series-0": "#1f6fb2", "--series-1": "#c2571a"}  # fmt: skip
Points = Mapping[str, Sequence[tuple[float, float]]]


def compile_time_points(record: dict[str, Any]) -> Points:
    """Graph nodes and processor seconds, per tool and kind of model, ascending; chains of one width."""
    points: dict[str, list[tuple[float, float]]] = {}
    for timing in timings_of(record):
        if timing.model.startswith("chain") and not timing.model.endswith("width 64"):
            continue
        kind = "chains" if timing.model.startswith("chain") else "torchvision"
        for tool, seconds in (("fxcompress", timing.speedup), ("Torch-Pruning", timing.torch_pruning)):
            if seconds is not None:
                points.setdefault(f"{tool}, {kind}", []).append((timing.nodes, round(seconds, 4)))
    return {name: sorted(found) for name, found in points.items()}


@svg.style()
def compile_time(points: Points) -> Figure:
    """Seconds over nodes, both logarithmic: a slope of one is linear."""
    figure, axes = svg.figure(3.0)
    for name, found in points.items():
        color = svg.SERIES[0] if name.startswith("fxcompress") else svg.SERIES[1]
        look = "o-" if "chains" in name else "^"
        axes.plot(*zip(*found, strict=True), look, color=color, label=name, ms=4, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="nodes of the graph", ylabel="seconds of the processor")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def standalone(figure: Figure, name: str, label: str, points: Points) -> str:
    """The figure as the text of a file.

    Args:
        name: of the picture, in front of its identifiers.
        label: what it shows, for those who cannot see it.
        points: what was drawn.
    """
    drawn = svg.inline(figure, name, label)
    colors = "; ".join(f"{variable}: {color}" for variable, color in LIGHT.items())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="640" style="background: #ffffff; {colors}" '
    tag, rest = drawn.replace("<svg ", head, 1).split(">", 1)
    return f"{tag}><desc>{escape(described(points), quote=False)}</desc>{rest}\n"


def described(points: Points) -> str:
    """The points as JSON."""
    return json.dumps(points)
