"""Pictures for a page: SVG elements that take the page's colors and load nothing.

A figure is drawn with ``COLORS``, opaque colors that stand for the page's CSS variables, so that a picture
follows the light or dark scheme of the reader. Identifiers get the picture's name in front: those of two
pictures on one page must differ.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "#010101": "var(--text)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--before)",
    "#050505": "var(--after)",
    **{f"#0606{i:02x}": f"var(--series-{i})" for i in range(8)},
}
"""Color in a figure → color on the page."""
TEXT, MUTED, LINE, BEFORE, AFTER, *SERIES = COLORS

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fxcompress",
    "font.size": 7.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "text.parse_math": False,
}
_WIDTH = 4.2
"""Inches of a picture: at a phone's width its text is still as large as a caption's."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's defaults with the page's look, whatever the user's own settings are. Also a decorator.

    Raises:
        FxcompressError: if matplotlib is missing.
    """
    try:
        from matplotlib import style as styles
    except ImportError as error:
        raise FxcompressError("the page needs matplotlib: pip install 'fxcompress[report]'") from error
    with styles.context(["default", _STYLE]):
        yield


def figure(height: float) -> tuple[Figure, Axes]:
    """An empty figure of ``height`` inches with its axes; to be drawn within ``style``."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(_WIDTH, height), layout="constrained")
    return made, made.add_subplot()


@style()
def inline(made: Figure, name: str, label: str) -> str:
    """``made`` as an SVG element.

    Args:
        name: of letters and dashes, unlike that of any other picture on the page.
        label: what the picture shows, for those who cannot see it.
    """
    stream = io.BytesIO()
    made.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):  # its style would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(key): _own(key, value, name) for key, value in element.attrib.items()}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    return serialized(root, label)


def serialized(root: ET.Element, label: str) -> str:
    """The element as text: a picture with a label, its markup escaped."""
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _own(key: str, value: str, name: str) -> str:
    """An attribute's value with the page's colors and font, and identifiers of this picture."""
    key = _local(key)
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1)
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?", "", value)
        value = re.sub(r"(font: [^;]*?[\d.]+px) [^;]*", r"\1 system-ui, sans-serif", value)
        value = re.sub(r"#[0-9a-f]{6}", lambda match: COLORS.get(match[0], match[0]), value)
    return value
