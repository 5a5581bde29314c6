"""L2: filters of the smallest Euclidean norm go first (He et al., Soft Filter Pruning, IJCAI 2018)."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.base import StructuredPruner


@final
class L2FilterPruner(StructuredPruner):
    """Score of filter ``f``: ``√(Σ w_f²)``."""

    name: ClassVar[str] = "l2"

    @classmethod
    def score(cls, filters: Tensor) -> Tensor:
        """The L2 norm of each row."""
        return filters.square().sum(1).sqrt()
