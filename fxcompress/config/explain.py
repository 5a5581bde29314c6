"""Show which node gets what from which entry and key, and why the others get nothing.

node   op type   settings        from
stem   Conv2d    pruner=l1       default
                 sparsity=0.5    config_list[0]
relu   ReLU      -               pruner 'l1' does not support ReLU
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from fxcompress.config.registry import known_pruners, known_quantizers
from fxcompress.config.schema import parse
from fxcompress.config.select import Deferred, Selection, select, targets_of_model
from fxcompress.config.settings import PruningSettings, QuantSettings
from fxcompress.config.values import PerType

_ALWAYS_SHOWN = ("pruner", "quantizer", "quant_types", "quant_bits")


@dataclass(frozen=True)
class Setting:
    """One key a node gets; `entry` is the index of the entry that gave it, None for the default."""

    key: str
    value: object
    entry: int | None

    @property
    def origin(self) -> str:
        """``config_list[i]`` or ``default``."""
        return "default" if self.entry is None else f"config_list[{self.entry}]"


@dataclass(frozen=True)
class Row:
    """One node: its settings, or the reason why it has none."""

    name: str
    op_type: str
    settings: tuple[Setting, ...]
    reason: str | None = None


@dataclass(frozen=True)
class Explanation:
    """What a config list does to a model; ``str()`` is a plain-text table."""

    rows: tuple[Row, ...]
    deferred: tuple[Deferred, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return rows and deferred names as plain dicts, lists and numbers (ready for JSON)."""
        return {
            "rows": [
                {
                    "name": row.name,
                    "op_type": row.op_type,
                    "settings": [
                        {"key": s.key, "value": _plain(s.key, s.value), "entry": s.entry}
                        for s in row.settings
                    ],
                    "reason": row.reason,
                }
                for row in self.rows
            ],
            "deferred": [{"entry": d.entry, "key": d.key, "value": d.value} for d in self.deferred],
        }

    def __str__(self) -> str:
        """Return the table, and below it the names that only the captured graph can confirm."""
        table = Table("node", "op type", "settings", "from", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in table.columns:
            column.no_wrap = True
        for row in self.rows:
            settings = "\n".join(f"{s.key}={_text(s.key, s.value)}" for s in row.settings) or "-"
            origins = "\n".join(s.origin for s in row.settings) or row.reason or ""
            # Text, not str: rich would read `[0]` in a string as markup.
            table.add_row(*(Text(cell) for cell in (row.name or "(model)", row.op_type, settings, origins)))
        stream = io.StringIO()
        Console(file=stream, width=100_000, color_system=None, legacy_windows=False).print(table)
        lines = [line.rstrip().replace("─", "-") for line in stream.getvalue().splitlines()]
        lines += [f"config_list[{d.entry}]: {d.key}: {d.value!r} {_WAITS}" for d in self.deferred]
        return "\n".join(line for line in lines if line)


_WAITS = "is no module; it is looked up again in the captured graph"


def explain(
    model: nn.Module,
    config_list: object,
    *,
    supported: Mapping[str, frozenset[str]] | None = None,
) -> Explanation:
    """Show what `config_list` selects in `model`, without capturing or changing the model.

    Args:
        model: any module.
        config_list: as for `fxcompress.compile`.
        supported: pruner name -> operator types; the registered pruners if not given.

    Raises:
        ConfigError: as `parse` and `select` do.
    """
    pruners = known_pruners() if supported is None else supported
    entries = parse(config_list, pruners=pruners.keys())
    known = {**known_quantizers(), **pruners}
    return explain_selection(select(entries, targets_of_model(model), known, captured=False))


def explain_selection(selection: Selection) -> Explanation:
    """Show a selection, for instance over the targets of a captured graph."""
    rows = []
    for target in selection.targets:
        settings = (
            *_settings(selection.pruning.get(target.name)),
            *_settings(selection.quantization.get(target.name)),
        )
        rows.append(Row(target.name, target.op_type, settings, selection.unselected.get(target.name)))
    return Explanation(tuple(rows), selection.deferred)


def _settings(given: PruningSettings | QuantSettings | None) -> Iterator[Setting]:
    """Yield the keys that entries gave, and those defaults without which the row would say too little."""
    if given is None:
        return
    for item in fields(given):
        if item.name in given.sources or item.name in _ALWAYS_SHOWN:
            yield Setting(item.name, getattr(given, item.name), given.sources.get(item.name))


def _plain(key: str, value: object) -> object:
    if isinstance(value, PerType):
        return {"weight": value.weight, "input": value.input, "output": value.output}
    if key.endswith("_options"):
        return dict(value)  # type: ignore[call-overload]
    return list(value) if isinstance(value, tuple) else value


def _text(key: str, value: object) -> str:
    if isinstance(value, PerType):
        parts = {"weight": value.weight, "input": value.input, "output": value.output}
        if len(set(parts.values())) == 1:
            return str(value.weight)
        return ",".join(f"{name}:{part}" for name, part in parts.items())
    if key.endswith("_options"):
        return ",".join(f"{name}:{option}" for name, option in value)  # type: ignore[attr-defined]
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
