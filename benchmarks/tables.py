"""Markdown made of the tables that the benchmarks print, so that page and terminal show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text


def markdown_table(table: Table) -> str:
    """The table in Markdown, numbers to the right; its title, if any, in bold above."""
    columns = table.columns
    header = [_cell(column.header) for column in columns]
    rules = ["---:" if column.justify == "right" else "---" for column in columns]
    rows = zip(*([_cell(cell) for cell in column.cells] for column in columns), strict=True)
    lines = [f"**{table.title}**\n"] if table.title else []
    return "\n".join(lines + [_line(cells) for cells in (header, rules, *rows)])


def pairs_table(pairs: Mapping[str, Any]) -> Table:
    """A name and a value per line."""
    table = Table("", "", box=None, pad_edge=False)
    for name, value in pairs.items():
        table.add_row(name, _shown(value))
    return table


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_shown(one) for one in value) or "none"
    return str(value)


def _cell(value: object) -> str:
    """The text of a cell, without rich's markup."""
    text = value.plain if isinstance(value, Text) else Text.from_markup(str(value)).plain
    return text.strip().replace("|", r"\|")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
