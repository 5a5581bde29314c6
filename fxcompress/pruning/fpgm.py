"""FPGM: the most replaceable filters go first (He et al., Filter Pruning via Geometric Median, CVPR 2019)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.pruning.base import StructuredPruner


@final
class FPGMPruner(StructuredPruner):
    """Score of filter ``f``: ``Σ_g ‖w_f − w_g‖₂``;
    filters near the geometric median are nearest to all others.
    """

    name: ClassVar[str] = "fpgm"

    @classmethod
    def score(cls, filters: Tensor) -> Tensor:
        """The sum of Euclidean distances of each row to all rows."""
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
