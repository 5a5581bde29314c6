"""L1: filters of the smallest absolute sum go first (Li et al., Pruning Filters for Efficient ConvNets,
ICLR 2017).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


@final
class L1FilterPruner(ScoringPruner):
    """Score of filter ``f``: ``Σ |w_f|``."""

    name: ClassVar[str] = "l1"

    def importance(self, layer: Layer) -> Tensor:
        """``|w|``."""
        return layer.entries().abs()
