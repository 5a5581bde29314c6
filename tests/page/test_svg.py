"""Pictures: their colors and identifiers, and names that are not their author's."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from fxcompress.page import charts, svg
from fxcompress.page.data import Amounts, Graph, GraphNode
from fxcompress.page.drawing import draw
from fxcompress.page.svg import inline
from fxcompress.report import Change
from fxcompress.sqnr import LayerSqnr, SqnrReport
from tests.page.example import example

PAIRS = [("conv", Amounts(64, 32)), ("head", Amounts(10, 10))]


def texts(picture: str) -> list[str]:
    return [text for e in ET.fromstring(picture).iter("text") if (text := "".join(e.itertext()))]


def test_bars_say_both_amounts() -> None:
    picture = inline(charts.bars("channels", PAIRS), "a", "bars")
    assert {"conv", "head", "channels", "64 → 32", "10"} <= set(texts(picture))


def test_bars_are_as_long_as_their_amounts() -> None:
    with svg.style():
        axes = charts.bars("channels", PAIRS).axes[0]
    before, after = axes.containers
    assert [patch.get_width() for patch in before] == [64, 10]
    assert [patch.get_width() for patch in after] == [32, 10]


def test_layers_may_have_the_same_name() -> None:
    picture = inline(charts.bars("channels", [("a", Amounts(2, 1)), ("a", Amounts(8, 4))]), "a", "bars")
    assert texts(picture).count("a") == 2


def test_a_picture_takes_the_colors_and_the_font_of_the_page() -> None:
    picture = inline(charts.bars("channels", PAIRS), "a", "bars")
    assert "fill: var(--before)" in picture
    assert "fill: var(--after)" in picture
    assert "font-family" not in picture
    assert not set(re.findall(r"#[0-9a-f]{6}", picture)) & set(svg.COLORS)


def test_pictures_on_one_page_share_no_identifier() -> None:
    first, second = (inline(charts.bars("channels", PAIRS), name, "bars") for name in ("a", "b"))
    ids = [set(re.findall(r' id="([^"]*)"', picture)) for picture in (first, second)]
    assert ids[0] & ids[1] == set()
    for picture, own in zip((first, second), ids, strict=True):
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', picture)
        assert used
        assert set(used) <= own


@pytest.mark.parametrize("name", ["<script>", "$x^2$", "a & b", "'\"", 'id="x"', "url(#x)", "_private"])
def test_names_are_shown_as_they_are(name: str) -> None:
    pictures = (
        inline(charts.bars("channels", [(name, Amounts(2, 1))]), "a", "bars"),
        inline(charts.noise(SqnrReport((LayerSqnr(name, "", {}, 1.0, 1.0),), 1.0)), "b", "noise"),
        inline(charts.curves({name: {0.0: 1.0, 0.5: 0.5}}), "c", "curves"),
    )
    for picture in pictures:
        assert name in texts(picture)
        assert "<script" not in picture


def test_a_picture_is_the_same_whatever_the_users_settings_are() -> None:
    first = inline(charts.bars("channels", PAIRS), "a", "bars")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "text.parse_math": True}):
        assert inline(charts.bars("channels", PAIRS), "a", "bars") == first
        assert mpl.rcParams["font.size"] == 30


def test_an_infinite_ratio_is_said_not_drawn() -> None:
    rows = (LayerSqnr("a", "", {}, float("inf"), 1.0, 20.0), LayerSqnr("b", "", {}, 10.0, 1.0, 30.0))
    figure = charts.noise(SqnrReport(rows, 1.0))
    assert "∞" in texts(inline(figure, "a", "noise"))
    widths = [patch.get_width() for c in figure.axes[0].containers for patch in c]
    assert widths == [0.0, 10.0, 20.0, 30.0]


def test_the_curves_that_fall_lowest_are_colored_and_named() -> None:
    results = {f"layer{i}": {0.0: 1.0, 0.9: i / 20} for i in range(20)}
    picture = inline(charts.curves(results), "a", "curves")
    assert [name for name in texts(picture) if name.startswith("layer")] == [f"layer{i}" for i in range(8)]


def test_the_graph_shows_widths_and_what_is_left_of_them() -> None:
    graph = example().data.graph
    assert graph is not None
    assert "Conv2d 8" in texts(draw(graph, "before"))
    assert {"Conv2d 4 of 8", "Linear 4"} <= set(texts(draw(graph, "after")))
    widths = {side: bars(draw(graph, side), "block.conv1") for side in ("before", "after")}
    full = widths["before"].pop("before")
    assert widths == {"before": {}, "after": {"before": full, "after": pytest.approx(full / 2)}}
    assert len(list(ET.fromstring(draw(graph, "after")).iter("path"))) == len(graph.edges)


def bars(picture: str, name: str) -> dict[str, float]:
    """Widths of the bars in the box of a layer, by their class."""
    groups = {str(g.findtext("text")): g for g in ET.fromstring(picture).iter("g")}
    rectangles = [r for r in groups[name].iter("rect") if r.get("class")]
    return {str(r.get("class")): float(r.get("width", "0")) for r in rectangles}


def test_what_is_gone_is_said_and_a_block_tells_how_many_layers_it_has() -> None:
    nodes = (
        GraphNode("a", "layer", "Linear", 1, Change(8, 0), Change(72, 0)),
        GraphNode("b", "block", "Bottleneck", 4, None, Change(20_000, 5_000)),
    )
    graph = Graph(nodes, ((0, 1),), ((0, 1),))
    gone, block = ET.fromstring(draw(graph, "after")).iter("g")
    assert gone.get("class") == "node layer gone"
    assert gone.findtext("title") == "a\nLinear removed"
    assert block.findtext("title") == "b\n4 layers\nBottleneck 5,000 of 20 k"
    there, whole = ET.fromstring(draw(graph, "before")).iter("g")
    assert there.get("class") == "node layer"
    assert there.findtext("title") == "a\nLinear 8"
    assert whole.findtext("title") == "b\n4 layers\nBottleneck 20 k"


def test_both_pictures_have_what_they_share_in_the_same_places_and_the_rest_on_its_side() -> None:
    gone, new = Change(1, 0), Change(0, 1)
    nodes = (
        GraphNode("x", "input"),
        GraphNode("a", "layer", count=gone),
        GraphNode("add", "join", count=gone),
        GraphNode("cat", "join", count=new),
        GraphNode("y", "output"),
    )
    graph = Graph(nodes, ((0, 1), (0, 2), (1, 2), (2, 4)), ((0, 3), (3, 4)))
    before, after = (ET.fromstring(draw(graph, side)) for side in ("before", "after"))
    names = [[g.findtext("text") for g in root.iter("g")] for root in (before, after)]
    assert names == [["x", "a", "add", "y"], ["x", "a", "add", "cat", "y"]]
    places = [{g.findtext("text"): g.get("transform") for g in root.iter("g")} for root in (before, after)]
    assert places[0].items() <= places[1].items()
    outlined = [g.findtext("text") for g in after.iter("g") if "gone" in str(g.get("class"))]
    assert outlined == ["a", "add"]
    kinds = [[p.get("class") for p in root.iter("path")] for root in (before, after)]
    assert kinds == [["edge"] * 4, ["edge gone"] * 4 + ["edge"] * 2]


def test_a_long_name_is_fitted_to_its_box() -> None:
    node = GraphNode("encoder.layers.0.attention", "layer", "Linear", 1, Change(8, 4), Change(72, 36))
    name, detail = ET.fromstring(draw(Graph((node,), (), ()), "after")).iter("text")
    assert (name.text, name.get("textLength")) == ("encoder…rs.0.attention", "148")
    assert (detail.text, detail.get("textLength")) == ("Linear 4 of 8", None)
