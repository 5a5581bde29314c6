"""Everything that is generated from the records: the page, its picture, tables in pages written by hand.

A table stands between ``<!-- benchmarks: NAME -->`` and ``<!-- /benchmarks -->``; the rest of the file is
written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.page import PICTURES, page
from benchmarks.peers import demo_table, minilm_table, peers_table
from benchmarks.plots import compile_time, compile_time_points, standalone
from benchmarks.results_file import RESULTS, ROOT, read_json
from fxcompress.export.files import replacing

PAGE = ROOT / "docs" / "benchmarks.md"
MARKED = (ROOT / "README.md", ROOT / "docs" / "quantization.md")
"""Files with tables between markers."""
BLOCKS = {"demo": demo_table, "peers": peers_table, "minilm": minilm_table}
_BLOCK = re.compile(r"(?<=<!-- benchmarks: )(\w+) -->\n.*?(?=<!-- /benchmarks -->)", re.DOTALL)


def with_blocks(text: str, results: Path) -> str:
    """``text`` with every marked table made anew.

    Raises:
        ValueError: if a marker names no table.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in BLOCKS:
            raise ValueError(f"<!-- benchmarks: {match[1]} -->: expected one of {', '.join(BLOCKS)}")
        return f"{match[1]} -->\n{BLOCKS[match[1]](results)}\n"

    return _BLOCK.sub(block, text)


def write_blocks() -> None:
    """Make the tables of the README, and of the page that has one, anew."""
    for file in MARKED:
        _write(file, with_blocks(file.read_text(encoding="utf-8"), RESULTS))


def write_page() -> None:
    """Write the page and its picture."""
    _write(PAGE, page(RESULTS))
    points = compile_time_points(read_json(RESULTS / "compiler_speed.json"))
    file, label = PICTURES["compiler_speed"]
    _write(PAGE.parent / "images" / file, standalone(compile_time(points), "compile", label, points))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
