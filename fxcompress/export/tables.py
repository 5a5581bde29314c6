"""Measurements in CSV files: one row per layer, one column per thing measured.

    layer,0.25,0.5
    conv1,0.91,0.88
    conv2,0.93,

An empty cell was not measured. Numbers are written so that reading gives the same ones.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fxcompress.errors import FxcompressError
from fxcompress.export.files import replacing

Rows = Mapping[str, Mapping[str, float | str | None]]
"""Layer → column → what was measured."""


def write_table(path: str | os.PathLike[str], rows: Rows, columns: Sequence[str]) -> None:
    """Write ``rows``, replacing the file when it is complete."""
    with replacing(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["layer", *columns])
        for layer, row in rows.items():
            cells = (row.get(column) for column in columns)
            writer.writerow(
                [layer, *("" if c is None else repr(c) if isinstance(c, float) else c for c in cells)]
            )


def read_table(path: Path, layers: Sequence[str], told: str) -> dict[str, dict[float, float]]:
    """The measurements in a file whose columns are numbers: layer → column → number.

    Args:
        layers: the layers that it may be about.
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
    if first != "layer" or not found.keys() <= set(layers):
        raise FxcompressError(f"{path}: holds other layers than this model's; delete it or name another")
    return found
