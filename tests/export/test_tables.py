"""Tables of measurements: read as written, and JSON without infinities."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from rich.markup import escape

from fxcompress.errors import FxcompressError
from fxcompress.export.tables import printed, read_curves, text_table, writable, write_curves

CURVES = {"a": {2.0: 0.1 + 0.2, 8.0: math.inf}, "b.c": {2.0: -1e-30}}


def test_curves_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_curves(tmp_path / "curves.csv", CURVES)
    assert (tmp_path / "curves.csv").read_text().splitlines()[::2] == ["layer,2.0,8.0", "b.c,-1e-30,"]
    assert read_curves(tmp_path / "curves.csv", ["a", "b.c", "d"], "a test") == CURVES


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    write_curves(file, CURVES)
    with pytest.raises(FxcompressError, match=r"curves\.csv: holds other layers"):
        read_curves(file, ["a"], "a test")
    file.write_text("layer,2.0\na,much\n")
    with pytest.raises(FxcompressError, match=r"expected a CSV file of a test \(.*much"):
        read_curves(file, ["a"], "a test")
    file.write_text("")
    with pytest.raises(FxcompressError, match="expected a CSV file of a test"):
        read_curves(file, ["a"], "a test")


def test_what_json_has_no_number_for_is_a_string() -> None:
    assert writable({1: (math.inf, -math.inf, 2.5), "x": None}) == {"1": ["inf", "-inf", 2.5], "x": None}


def test_a_table_stands_under_its_title() -> None:
    table = text_table("layer", "dB")
    table.add_row(escape("[conv]"), "12.5")
    assert (
        printed("a title that is wider than its table", table).splitlines()[0].startswith("a title that is")
    )
