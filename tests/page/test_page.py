"""The page: well-formed, self-contained, escaped, with the parts that were given."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import ExportError, FxcompressError
from fxcompress.page import PageData, page
from fxcompress.page.collect import Extras, collect
from fxcompress.page.data import FloatOperator, Missing
from fxcompress.report import Kept, make_report
from tests.helpers import ready
from tests.page.example import Block, example, pruned

VOID = {"meta", "br", "link"}


class Structure(HTMLParser):
    """Checks that every tag is closed in order; collects attributes and what can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.text += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def parsed(text: str) -> Structure:
    found = Structure()
    found.feed(text)
    found.close()
    assert found.open == []
    return found


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', text)


def test_every_tag_is_closed_and_every_part_is_there() -> None:
    found = parsed(example().page)
    assert sections(example().page) == ["totals", "kept", "graph", "layers", "sensitivity", "noise", "onnx"]
    assert found.tags.count("svg") == 2 + 4 + 1 + 1
    assert found.tags.count("script") == 0
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded() -> None:
    found = parsed(example().page)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(found.tags)
    references = {value for name, value in found.attributes if name in ("src", "href") and value}
    assert {value for value in references if not value.startswith("#")} == {"report.json"}
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/)", example().page)


def test_figures_are_on_the_page() -> None:
    text = " ".join(parsed(example().page).text.split())
    amounts = ("1,444 856 -40.7%", "0.98 0.95 -0.03", "stem 0.9 0.8")
    for told in (*amounts, "4 of 4 masked channels stay", "of 9 integer kernels 0"):
        assert told in text
    assert f"{example().sqnr.total:.1f} dB" in text


def test_what_is_missing_is_left_out_with_the_way_to_get_it() -> None:
    text = page(collect(pruned().small, Extras(), latency=False))
    parsed(text)
    assert sections(text) == ["totals", "kept", "graph", "layers", "missing"]
    assert "sqnr=fxcompress.sqnr.sqnr(quantized, batches)" in text


BAD = "<script>alert(1)</script>&\"'$x$"


def renamed() -> PageData:
    """The example's data with a hostile string in each place that a user's model reaches."""
    data = example().data
    assert data.graph is not None
    assert data.onnx is not None
    assert data.sqnr is not None
    nodes = tuple(replace(node, name=BAD, type=BAD) for node in data.graph.nodes)
    row = replace(data.sqnr.rows[0], layer=BAD, op=BAD, tensors={BAD: 1.0})
    return replace(
        data,
        model=BAD,
        totals=(replace(data.totals[0], name=BAD), *data.totals[1:]),
        layers=tuple(replace(layer, name=BAD, type=BAD) for layer in data.layers),
        kept=(Kept(BAD, BAD),),
        notes=(BAD,),
        graph=replace(data.graph, nodes=nodes),
        sensitivity={BAD: {0.5: 1.0}},
        sqnr=replace(data.sqnr, rows=(row,)),
        onnx=replace(
            data.onnx,
            file=BAD,
            kernels={BAD: 1},
            floats=(FloatOperator(BAD, BAD, BAD, BAD),),
            notes=(BAD,),
        ),
        missing=(Missing(BAD, BAD),),
    )


def test_names_of_the_model_are_escaped_everywhere() -> None:
    data = renamed()
    found = parsed(page(data, BAD))
    assert "script" not in found.tags
    assert found.text.count(BAD) >= 15
    assert PageData.from_json(data.to_json()) == data


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("<script>", nn.Conv2d(3, 8, 3))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.get_submodule("<script>")(x))
        return y


def test_a_layer_may_have_any_name(tmp_path: Path) -> None:
    module = fxcompress.capture(ready(Odd()).float(), torch.randn(1, 3, 8, 8))
    report = make_report(module, module, module.example_inputs)
    data = fxcompress.write_report(tmp_path / "odd.html", report, latency=False)
    assert [layer.name for layer in data.layers] == ["<script>", "head"]
    found = parsed((tmp_path / "odd.html").read_text(encoding="utf-8"))
    assert "script" not in found.tags
    assert "<script>" in found.text


def test_a_large_net_stays_readable() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), *(nn.Sequential(Block(4), Block(4)) for _ in range(40)))
    module = fxcompress.capture(net.eval(), torch.randn(1, 3, 8, 8))
    data = collect(make_report(module, module, module.example_inputs), Extras(), latency=False)
    assert len(data.layers) == 1 + 40 * 2 * 3
    assert data.graph is not None
    assert len(data.graph.nodes) == 43
    text = page(data)
    parsed(text)
    assert "channels by block" in text
    assert len(text) < 400_000


def test_page_and_json_are_put_in_place_together(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    small = pruned().small
    interrupted = mock.patch.object(PageData, "to_json", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        fxcompress.write_report(tmp_path / "report.html", small, latency=False)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"report.html": "old"}
    data = fxcompress.write_report(tmp_path / "report.html", small, latency=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert PageData.from_json((tmp_path / "report.json").read_bytes()) == data


def test_a_path_that_is_no_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FxcompressError, match=r"expected a path that ends in \.html, got .*report\.json"):
        fxcompress.write_report(tmp_path / "report.json", pruned().small)
    with pytest.raises(ExportError, match="does not exist"):
        fxcompress.write_report(tmp_path / "none" / "report.html", pruned().small, latency=False)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path) -> None:
    from fxcompress.page import html

    html._environment.cache_clear()
    needed = rf"needs {package}: pip install 'fxcompress\[report\]'"
    with mock.patch.dict("sys.modules", {package: None}), pytest.raises(FxcompressError, match=needed):
        fxcompress.write_report(tmp_path / "report.html", pruned().small, latency=False)
    assert list(tmp_path.iterdir()) == []
