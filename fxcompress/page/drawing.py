"""The graph before and after as pictures: a box per layer or block with its width, and what reads what."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as ET

from fxcompress.page.data import Graph, GraphNode
from fxcompress.page.layout import Layout, layered
from fxcompress.page.svg import serialized
from fxcompress.page.text import amount, shortened
from fxcompress.report import Change

BOX, HEIGHT, PITCH = 164.0, 42.0, 64.0
LANE, GAP, MARGIN = 6.0, 12.0, 4.0
_NAME, _DETAIL = 22, 28
"""Characters that fit into a box."""


def draw(graph: Graph, side: str) -> str:
    """The graph ``before`` or ``after`` as an SVG element, in pixels; the first node on top.

    Both have their nodes in the same places. What is gone after is drawn in outline.
    """
    layout = layered(len(graph.nodes), graph.edges, box=BOX, lane=LANE, gap=GAP)
    width = layout.width + 2 * MARGIN
    height = (max(layout.ranks, default=0)) * PITCH + HEIGHT + 2 * MARGIN
    root = ET.Element("svg", {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": f"{width:.0f}"})
    root.set("height", f"{height:.0f}")
    there = set(getattr(graph, side) or ())
    for edge in graph.edges if side == "after" else graph.before or ():
        kind = "edge" if edge in there else "edge gone"
        ET.SubElement(root, "path", {"class": kind, "d": _path(edge, layout)})
    for node, x, rank in zip(graph.nodes, layout.x, layout.ranks, strict=True):
        if side == "after" or node.count.before:
            root.append(_box(node, x - BOX / 2 + MARGIN, rank * PITCH + MARGIN, side))
    layers = sum(node.layers for node in graph.nodes)
    return serialized(root, f"Graph of the model's {layers} layers with their widths {side}")


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


def _box(node: GraphNode, left: float, top: float, side: str) -> ET.Element:
    share = node.channels or node.parameters
    gone = side == "after" and _is_gone(node)
    group = ET.Element("g", {"class": f"node {node.kind}" + (" gone" if gone else "")})
    group.set("transform", f"translate({left:.1f},{top:.1f})")
    told = f"{node.layers} layers" if node.kind == "block" else ""
    ET.SubElement(group, "title").text = "\n".join(filter(None, [node.name, told, _detail(node, 1000, side)]))
    small = node.kind in ("input", "output", "join")
    inset = 30.0 if small else 0.0
    shape = {"x": f"{inset:g}", "width": f"{BOX - 2 * inset:g}", "height": f"{HEIGHT:g}"}
    ET.SubElement(group, "rect", {**shape, "rx": "20" if small else "5"})
    if small:
        _text(group, BOX / 2, HEIGHT / 2 + 4, shortened(node.name, 16), "name middle")
        return group
    _text(group, 8, 16, shortened(node.name, _NAME), "name", _NAME)
    _text(group, 8, 30, _detail(node, _DETAIL, side), "detail", _DETAIL)
    if share is not None and share.before:
        _bar(group, share, side)
    return group


def _is_gone(node: GraphNode) -> bool:
    left = node.parameters
    return not node.count.after or (left is not None and left.before > 0 == left.after)


def _detail(node: GraphNode, length: int, side: str) -> str:
    """The class, as much of it as there is room for, and widths (of a layer) or parameters (of a block)."""
    sizes = node.channels if node.kind == "layer" else node.parameters
    told = "removed" if side == "after" and _is_gone(node) else _part(sizes, side)
    return f"{shortened(node.type, max(2, length - 1 - len(told)))} {told}".strip()


def _part(sizes: Change | None, side: str) -> str:
    """``64`` before; ``32 of 64`` after."""
    if sizes is None:
        return ""
    old, new = amount(sizes.before), amount(sizes.after)
    return old if side == "before" or old == new else f"{new} of {old}"


def _bar(group: ET.Element, share: Change, side: str) -> None:
    """What there was, along the bottom of the box, and the share that is left in front of it."""
    parts = {"before": 1.0, "after": min(1.0, share.after / share.before)}
    for kind in ("before", "after")[: 1 if side == "before" else 2]:
        place = {"x": "8", "y": "34.5", "width": f"{(BOX - 16) * parts[kind]:.1f}", "height": "3.5"}
        ET.SubElement(group, "rect", {"class": kind, **place, "rx": "1.5"})


def _text(group: ET.Element, x: float, y: float, text: str, kind: str, room: int = 0) -> None:
    """A text; one that takes nearly all of its ``room`` is fitted to the box, whatever the reader's font."""
    made = ET.SubElement(group, "text", {"x": f"{x:g}", "y": f"{y:g}", "class": kind})
    made.text = text
    if room and len(text) > 0.85 * room:
        made.set("textLength", f"{(BOX - 2 * x) * len(text) / room:.0f}")
        made.set("lengthAdjust", "spacingAndGlyphs")
