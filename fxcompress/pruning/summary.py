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
    rank = max((len(entries["weight"].shape) for entries in masks.values() if "weight" in entries), default=0)
    table = Table(box=None, pad_edge=False)
    for column in ("layer", "type", "sparsity", *(f"dim {dim}" for dim in range(rank))):
        table.add_column(column, justify="left" if column in ("layer", "type") else "right")
    for layer in layers:
        kind = type(module.get_submodule(layer)).__name__
        mask = masks.get(layer, {}).get("weight")
        if mask is None:
            table.add_row(layer, kind, "0.0%")
        else:
            table.add_row(layer, kind, f"{float((mask == 0).double().mean()):.1%}", *map(str, _axes(mask)))
    return table


def _axes(mask: Tensor) -> list[str]:
    rows = [mask.movedim(dim, 0).reshape(size, -1) for dim, size in enumerate(mask.shape)]
    return [f"{int((row != 0).any(1).sum())}/{len(row)}" for row in rows]
