"""L2: filters of the smallest Euclidean norm go first (He et al., Soft Filter Pruning, IJCAI 2018)."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


@final
class L2FilterPruner(ScoringPruner):
    """Score of filter ``f``: ``√(Σ w_f²)``."""

    name: ClassVar[str] = "l2"

    def importance(self, layer: Layer) -> Tensor:
        """``w²``."""
        return layer.entries().square()

    def score(self, layer: Layer) -> Tensor:
        """The Euclidean norm of each filter."""
        return super().score(layer).sqrt()
