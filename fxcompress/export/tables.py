"""Measurements as tables: in CSV files, which an interrupted run reads again, and as plain text.

    layer,0.25,0.5
    conv1,0.91,0.88
    conv2,0.93,

An empty cell was not measured. Numbers are written so that reading gives the same ones.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fxcompress.errors import FxcompressError
from fxcompress.export.files import replacing


def write_table(
    path: str | os.PathLike[str],
    rows: Mapping[str, Mapping[str, float | str | None]],
    columns: Sequence[str],
) -> None:
    """Write ``rows`` (layer → column → what was measured), replacing the file when it is complete."""
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", *columns])
        for layer, row in rows.items():
            cells = (row.get(column) for column in columns)
            writer.writerow([layer, *("" if cell is None else str(cell) for cell in cells)])


def write_curves(path: str | os.PathLike[str], curves: Mapping[str, Mapping[float, float]]) -> None:
    """Write measurements whose columns are numbers: layer → column → number."""
    columns = sorted({column for curve in curves.values() for column in curve})
    rows = {layer: {str(c): value for c, value in curve.items()} for layer, curve in curves.items()}
    write_table(path, rows, list(map(str, columns)))


def read_curves(path: Path, layers: Collection[str] | None, told: str) -> dict[str, dict[float, float]]:
    """What ``write_curves`` wrote.

    Args:
        layers: the layers that it may be about; ``None`` for any.
        told: what it is a file of, as errors say.

    Raises:
        FxcompressError: if it is no such file, or is about other layers.
    """
    with path.open(newline="") as stream:
        lines = list(csv.reader(stream))
    found: dict[str, dict[float, float]] = {}
    try:
        (first, *columns), *rows = lines
        for layer, *values in rows:
            pairs = zip(columns, values, strict=True)
            found[layer] = {float(column): float(value) for column, value in pairs if value}
    except ValueError as error:
        raise FxcompressError(
            f"{path}: expected a CSV file of {told} ({error}); delete it or name another"
        ) from error
    if first != "layer" or not (layers is None or found.keys() <= set(layers)):
        raise FxcompressError(f"{path}: holds other layers than this model's; delete it or name another")
    return found


def text_table(first: str, *figures: str) -> Table:
    """A table of one column of names and further ones of ``figures``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right")
    return table


def printed(title: str, table: Table, *, width: int = 110) -> str:
    """``table`` as plain text of at most ``width`` columns under its title."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, legacy_windows=False, emoji=False).print(table)
    return "\n".join([title, *(line.rstrip() for line in stream.getvalue().rstrip().splitlines())])


def writable(value: Any) -> Any:
    """``value`` (dicts, lists, tuples, numbers) for JSON, which has no infinite numbers: ``"inf"``."""
    if isinstance(value, Mapping):
        return {str(key): writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
