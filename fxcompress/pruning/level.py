"""Level: single weights of the smallest magnitude go first (Han et al.,
Learning both Weights and Connections, 2015).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.config.settings import PruningSettings
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.insert_masks import insert_masks
from fxcompress.pruning.base import Pruner
from fxcompress.pruning.layers import Layer, find_layers, keep_lowest_out


@final
class LevelPruner(Pruner):
    """Masks the ``floor(s · n)`` weights of smallest ``|w|`` of each layer (fine-grained; biases stay)."""

    name: ClassVar[str] = "level"

    @classmethod
    def apply(
        cls, module: CompiledModule, settings: dict[str, PruningSettings], *, dependency_aware: bool
    ) -> None:
        """Mask weights one by one; single weights are not coupled, so ``dependency_aware`` changes
        nothing.
        """
        layers, missing = find_layers(module, analyze_axes(module), settings)
        masks: dict[str, Tensor] = {}
        together: dict[int, list[Layer]] = defaultdict(list)
        for layer in layers:
            weight = layer.weight
            if layer.settings.total_sparsity is not None:
                together[layer.settings.sources["total_sparsity"]].append(layer)
                continue
            count = math.floor((layer.settings.sparsity or 0.0) * weight.numel())
            masks.update(layer.masks(module, keep_lowest_out(weight.abs(), count)))
        for group in together.values():
            masks.update(_ranked_together(module, group))
        insert_masks(module, masks)
        module.notes = (*module.notes, *(f"{n}: not pruned: {why}" for n, why in missing.items()))


def _ranked_together(module: CompiledModule, group: list[Layer]) -> dict[str, Tensor]:
    """Rank all weights of the group;
    a layer's weights beyond its ``max_sparsity_per_layer`` are not eligible.
    """
    scores = []
    for layer in group:
        magnitude = layer.weight.abs().double()
        most = layer.settings.max_sparsity_per_layer
        if most is not None:
            eligible = ~keep_lowest_out(magnitude, math.floor(most * magnitude.numel()))
            magnitude = torch.where(eligible, magnitude, torch.inf)
        scores.append(magnitude)
    flat = torch.cat([s.reshape(-1) for s in scores])
    count = min(math.floor((group[0].settings.total_sparsity or 0.0) * len(flat)), int(flat.isfinite().sum()))
    kept = keep_lowest_out(flat, count).split([s.numel() for s in scores])
    masks: dict[str, Tensor] = {}
    for layer, score, rows in zip(group, scores, kept, strict=True):
        masks.update(layer.masks(module, rows.view_as(score)))
    return masks
