"""A table of what masks keep, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from torch import Tensor

from fxcompress.graph.module import CompiledModule
from fxcompress.pruning.masks import get_masks


def mask_table(module: CompiledModule, layers: Sequence[str]) -> Table:
    """One line per layer: the share of its weights that is masked, and what is left of its axes.

    An axis counts the slices of the weight that are not masked entirely, ``kept/all``.
    """
    masks = get_masks(module)
    weights = {
        layer: {n: m for n, m in masks.get(layer, {}).items() if n.endswith("weight")} for layer in layers
    }
    rank = max((mask.dim() for entries in weights.values() for mask in entries.values()), default=0)
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "type", "sparsity", *(f"dim {dim}" for dim in range(rank))):
        table.add_column(column, justify="left" if column in ("layer", "type") else "right")
    for layer in layers:
        kind = type(module.get_submodule(layer)).__name__
        for name, mask in weights[layer].items():
            told = layer if name == "weight" else f"{layer}.{name}"
            table.add_row(told, kind, f"{float((mask == 0).double().mean()):.1%}", *_axes(mask))
        if not weights[layer]:
            table.add_row(layer, kind, "0.0%")
    return table


def _axes(mask: Tensor) -> list[str]:
    rows = [mask.movedim(dim, 0).reshape(size, -1) for dim, size in enumerate(mask.shape)]
    return [f"{int((row != 0).any(1).sum())}/{len(row)}" for row in rows]
