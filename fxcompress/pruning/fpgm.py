"""FPGM: the most replaceable filters go first (He et al., Filter Pruning via Geometric Median, CVPR 2019)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import FilterPruner


@final
class FPGMPruner(FilterPruner):
    """Score of filter ``f``: ``Σ_g ‖w_f − w_g‖₂``; filters near the geometric median are nearest to all."""

    name: ClassVar[str] = "fpgm"

    def score(self, layer: Layer) -> Tensor:
        """The sum of Euclidean distances of each filter to all filters."""
        filters = layer.filters().float()
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
