"""What a command hands back: facts for machines (``--json``), tables and lines for people."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Found:
    """``facts``: JSON-ready, but for numbers that JSON does not know (they become null)."""

    facts: Mapping[str, Any]
    parts: tuple[RenderableType, ...]


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``: one object on standard output and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


@contextlib.contextmanager
def nothing_else_on_stdout(options: argparse.Namespace) -> Iterator[None]:
    """With ``--json``, what the block prints goes to standard error."""
    if getattr(options, "json", False) is True:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    else:
        yield


def show(found: Found, options: argparse.Namespace) -> None:
    """Print the facts or the parts."""
    if getattr(options, "json", False) is True:
        print(as_json(found.facts))
        return
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120
    for part in found.parts:
        if isinstance(part, str):
            console.print(part, markup=False)
        else:
            console.print(part, soft_wrap=False)


def as_json(facts: Mapping[str, Any], indent: int | None = None) -> str:
    """``facts`` as JSON text."""
    return json.dumps(_finite(facts), allow_nan=False, indent=indent)


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and the others numbers."""
    made = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return made


def row(made: Table, *cells: object) -> None:
    """Add a row; whole numbers get thousands separators, ``None`` is a dash."""
    made.add_row(*(_cell(cell) for cell in cells))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
