"""The page in a real browser, at the width of a desktop and of a phone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from fxcompress.page import page
from tests.page.browser import WIDTHS, chromium, measured, screenshot
from tests.page.example import example
from tests.page.test_page import renamed

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return measured(example().page)


@pytest.mark.parametrize("index", range(len(WIDTHS)), ids=[f"{width}px" for width in WIDTHS])
def test_the_page_is_as_wide_as_its_window(index: int, found: list[dict[str, Any]]) -> None:
    seen = found[index]
    assert seen["width"] == seen["scrolls"] == WIDTHS[index]
    assert seen["outside"] == []


def test_pictures_and_figures_are_seen_and_nothing_is_loaded(found: list[dict[str, Any]]) -> None:
    for seen in found:
        assert len(seen["pictures"]) == 8
        assert min(seen["pictures"]) > 150
        words = {line.strip() for line in seen["text"].replace("\t", "\n").splitlines()}
        assert {"Before and after", "1,444", "Masked, but not removed", "stem"} <= words
        assert seen["loaded"] == []


def test_charts_stand_beside_each_other_where_there_is_room(found: list[dict[str, Any]]) -> None:
    desktop, phone = (seen["pictures"][2] for seen in found)
    assert phone == WIDTHS[1] - 2 * 12
    assert phone < desktop < WIDTHS[0] / 2


def test_the_graphs_stand_beside_each_other_or_one_above_the_other(found: list[dict[str, Any]]) -> None:
    desktop, phone = (seen["figures"] for seen in found)
    assert desktop[0][0] < desktop[1][0]
    assert desktop[0][1] == desktop[1][1]
    assert phone[0][0] == phone[1][0]
    assert phone[0][1] < phone[1][1]


def test_long_names_do_not_widen_the_page() -> None:
    for seen in measured(page(renamed()).replace("alert(1)", "long_name." * 30)):
        assert seen["scrolls"] == seen["width"]
        assert seen["outside"] == []


def test_the_page_is_dark_where_the_reader_prefers_it(found: list[dict[str, Any]]) -> None:
    [dark] = measured(example().page, WIDTHS[:1], "--blink-settings=preferredColorScheme=0")
    assert (found[0]["background"], dark["background"]) == ("rgb(255, 255, 255)", "rgb(20, 24, 29)")


def size(picture: Path) -> tuple[int, ...]:
    """Width and height of a PNG file."""
    start = picture.read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", start[16:24])


def test_screenshots_show_both_widths(tmp_path: Path) -> None:
    screenshot(example().page, tmp_path / "report.png", height=600)
    assert size(tmp_path / "report.png") == (1280 + 390 + 3 * 24, 600 + 48)


def test_the_screenshot_of_the_documentation_is_committed_and_small() -> None:
    picture = DOCS / "images" / "report.png"
    assert picture.stat().st_size < 300_000
    assert size(picture)[0] == 1280 + 390 + 3 * 24
    assert "](images/report.png)" in (DOCS / "report.md").read_text(encoding="utf-8")
