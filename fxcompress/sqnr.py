"""``sqnr``: which layers rounding hurts, in decibels, before any training.

report = sqnr(quantized, batches)
print(report)                                     # the worst layers first
report.export("sqnr.csv")
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape

from fxcompress.errors import FxcompressError
from fxcompress.export.tables import printed, text_table, writable, write_table
from fxcompress.graph.module import CompiledModule
from fxcompress.quantization.layerwise import leaves_of
from fxcompress.quantization.noise import errors_at_output, local_errors, measuring, rounded_layers
from fxcompress.quantization.placement import tensors_of


@dataclass(frozen=True)
class LayerSqnr:
    """One layer; all figures in decibels, infinite where rounding changes nothing.

    Attributes:
        layer: its name; ``op``: its operator (``conv2d``, ``add``, ...).
        tensors: what the rounding of one of its tensors alone does to its output, the rest float: of
            ``weight``, ``input`` (further ones ``input_1``, ...) and ``output``.
        local: likewise of all of them together.
        accumulated: at its output, with everything in front of it rounded as well.
        end_to_end: at the output of the model, with this layer's tensors rounded and the rest float.
    """

    layer: str
    op: str
    tensors: Mapping[str, float]
    local: float
    accumulated: float
    end_to_end: float | None = None


@dataclass(frozen=True)
class SqnrReport:
    """Signal to quantization noise of every layer, in the order of the model.

    ``total``: at the output of the model, with everything rounded.
    """

    rows: tuple[LayerSqnr, ...]
    total: float

    def worst(self) -> tuple[LayerSqnr, ...]:
        """The rows, those that cost the model most first: by ``end_to_end``, or else by ``local``."""
        return tuple(sorted(self.rows, key=lambda r: r.local if r.end_to_end is None else r.end_to_end))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready dicts; an infinite figure is the string ``"inf"``."""
        found: dict[str, Any] = writable({"total": self.total, "layers": [asdict(row) for row in self.rows]})
        return found

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write a CSV file: one line per layer, one column per figure."""
        columns = ["op", *self._tensors(), "local", "accumulated", "end_to_end"]
        rows = {
            row.layer: {
                name: value for name, value in {**asdict(row), **row.tensors}.items() if name in columns
            }
            for row in self.rows
        }
        write_table(path, rows, columns)

    def _tensors(self) -> list[str]:
        """The names of tensors that any layer has."""
        return sorted({name for row in self.rows for name in row.tensors}, key=_order)

    def to_text(self, *, width: int = 110, rows: int = 40) -> str:
        """Return a plain table of the ``rows`` worst layers, at most ``width`` columns wide."""
        tensors = self._tensors()
        title = f"SQNR in dB: {_told(self.total)} at the output with everything rounded"
        table = text_table("layer", "op", "end to end", "local", *tensors, "accumulated")
        for row in self.worst()[:rows]:
            alone = (_told(row.tensors.get(name)) for name in tensors)
            figures = (_told(row.end_to_end), _told(row.local), *alone, _told(row.accumulated))
            table.add_row(escape(row.layer), escape(row.op), *figures)
        if len(self.rows) > rows:
            table.add_row(f"and {len(self.rows) - rows} more")
        return printed(title, table, width=width)

    def __str__(self) -> str:
        return self.to_text()


def sqnr(module: CompiledModule, data: Iterable[Any], *, end_to_end: bool = True) -> SqnrReport:
    """Measure how much of the signal rounding leaves, layer by layer, in eval mode.

    Needs no labels and no training: a few batches do. Everything rounds, also what is to begin at a later
    ``quant_start_step``. The local figures of all layers take one walk per batch, of a float and a rounded
    pass and each layer once per tensor; ``end_to_end`` runs, for each layer and batch, what lies behind it,
    and holds all values of a batch.

    Args:
        module: a quantized module, of ``compile`` or of a quantizer's ``compress``; left as it is.
        data: batches, see ``fxcompress.compile``.
        end_to_end: whether to measure each layer at the output of the model too.

    Raises:
        FxcompressError: if the module is not quantized, a quantizer has seen no values yet, or there is no
            batch.
    """
    if not isinstance(module, CompiledModule):
        raise FxcompressError(
            f"sqnr: expected a module of fxcompress.compile, got {type(module).__name__}; compile it first"
        )
    layers = rounded_layers(module)
    with measuring(module):
        batches = leaves_of(module, data)
        local, total = local_errors(module, batches, layers)
        groups = {
            name: {quantizer for call in calls for quantizer in tensors_of(call.node).values()}
            for name, calls in layers.items()
        }
        ends = errors_at_output(module, batches, groups if end_to_end else {}, "SQNR")
    rows = (
        LayerSqnr(
            layer=name,
            op=calls[0].op,
            tensors={tensor: ratio.sqnr for tensor, ratio in local[name].alone.items()},
            local=local[name].together.sqnr,
            accumulated=local[name].accumulated.sqnr,
            end_to_end=ends[name].sqnr if end_to_end else None,
        )
        for name, calls in layers.items()
    )
    return SqnrReport(tuple(rows), total.sqnr)


def _order(tensor: str) -> tuple[int, str]:
    return ("weight", "input", "output").index(tensor.partition("_")[0]), tensor


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
