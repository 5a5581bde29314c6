"""L1: filters of the smallest absolute sum go first (Li et al., Pruning Filters for Efficient ConvNets,
ICLR 2017).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.base import StructuredPruner


@final
class L1FilterPruner(StructuredPruner):
    """Score of filter ``f``: ``Σ |w_f|``."""

    name: ClassVar[str] = "l1"

    @classmethod
    def score(cls, filters: Tensor) -> Tensor:
        """The L1 norm of each row."""
        return filters.abs().sum(1)
