"""The graph as a picture: a box per layer or block, with its width before and after, and what reads what."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

from fxcompress.page.data import Graph, GraphNode
from fxcompress.page.layout import Layout, layered
from fxcompress.page.svg import serialized
from fxcompress.page.text import arrow, shortened
from fxcompress.report import Change

BOX, HEIGHT, PITCH = 164.0, 42.0, 64.0
LANE, GAP, MARGIN = 6.0, 12.0, 4.0
_NAME, _DETAIL = 22, 28
"""Characters that fit into a box."""


def draw(graph: Graph) -> str:
    """The graph as an SVG element, in pixels; the first node on top."""
    layout = layered(len(graph.nodes), graph.edges, box=BOX, lane=LANE, gap=GAP)
    width = layout.width + 2 * MARGIN
    height = (max(layout.ranks, default=0)) * PITCH + HEIGHT + 2 * MARGIN
    root = ET.Element("svg", {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}"})
    root.set("height", f"{height:.0f}")
    for edge in graph.edges:
        ET.SubElement(root, "path", {"class": "edge", "d": _path(edge, layout)})
    for node, x, rank in zip(graph.nodes, layout.x, layout.ranks, strict=True):
        root.append(_box(node, x - BOX / 2 + MARGIN, rank * PITCH + MARGIN))
    layers = sum(node.layers for node in graph.nodes)
    return serialized(root, f"Graph of the model's {layers} layers with their widths before and after")


def _path(edge: tuple[int, int], layout: Layout) -> str:
    """Down from the bottom of one box through its lanes to the top of the other."""
    a, b = edge
    points = [(layout.x[a], layout.ranks[a] * PITCH + HEIGHT)]
    for step, x in enumerate(layout.routes[edge], layout.ranks[a] + 1):
        points += [(x, step * PITCH), (x, step * PITCH + HEIGHT)]
    points.append((layout.x[b], layout.ranks[b] * PITCH))
    path = [f"M{_at(*points[0])}"]
    for number, ((x, y), (u, v)) in enumerate(pairwise(points)):
        if number % 2:  # inside a lane
            path.append(f"L{_at(u, v)}")
        else:
            middle = (y + v) / 2
            path.append(f"C{_at(x, middle)} {_at(u, middle)} {_at(u, v)}")
    return "".join(path)


def _at(x: float, y: float) -> str:
    return f"{x + MARGIN:.1f},{y + MARGIN:.1f}"


def _box(node: GraphNode, left: float, top: float) -> ET.Element:
    share = node.channels or node.parameters
    gone = share is not None and share.before > 0 and share.after == 0
    group = ET.Element("g", {"class": f"node {node.kind}" + (" gone" if gone else "")})
    group.set("transform", f"translate({left:.1f},{top:.1f})")
    told = f"{node.layers} layers" if node.kind == "block" else ""
    ET.SubElement(group, "title").text = "\n".join(filter(None, [node.name, told, _detail(node, 1000)]))
    small = node.kind in ("input", "output", "join")
    inset = 30.0 if small else 0.0
    shape = {"x": f"{inset:g}", "width": f"{BOX - 2 * inset:g}", "height": f"{HEIGHT:g}"}
    ET.SubElement(group, "rect", {**shape, "rx": "20" if small else "5"})
    if small:
        _text(group, BOX / 2, HEIGHT / 2 + 4, shortened(node.name, 16), "name middle")
        return group
    _text(group, 8, 16, shortened(node.name, _NAME), "name", _NAME)
    _text(group, 8, 30, _detail(node, _DETAIL), "detail", _DETAIL)
    if share is not None and share.before:
        _bar(group, share)
    return group


def _detail(node: GraphNode, length: int) -> str:
    """The class, as much of it as there is room for, and widths (of a layer) or parameters (of a block)."""
    sizes = node.channels if node.kind == "layer" else node.parameters
    told = "removed" if node.parameters and not node.parameters.after else arrow(sizes)
    return f"{shortened(node.type, max(2, length - 1 - len(told)))} {told}".strip()


def _bar(group: ET.Element, share: Change) -> None:
    """The share that is left, along the bottom of the box."""
    for kind, part in (("before", 1.0), ("after", min(1.0, share.after / share.before))):
        place = {"x": "8", "y": "34.5", "width": f"{(BOX - 16) * part:.1f}", "height": "3.5", "rx": "1.5"}
        ET.SubElement(group, "rect", {"class": kind, **place})


def _text(group: ET.Element, x: float, y: float, text: str, kind: str, room: int = 0) -> None:
    """A text; one that takes nearly all of its ``room`` is fitted to the box, whatever the reader's font."""
    made = ET.SubElement(group, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": kind})
    made.text = text
    if room and len(text) > 0.85 * room:
        made.set("textLength", f"{(BOX - 2 * x) * len(text) / room:.0f}")
        made.set("lengthAdjust", "spacingAndGlyphs")
