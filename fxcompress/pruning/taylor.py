"""Taylor: filters whose removal changes the loss least, to first order (Molchanov et al., Importance
Estimation for Neural Network Pruning, CVPR 2019).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.measuring import GradientPruner


@final
class TaylorFOWeightFilterPruner(GradientPruner):
    """Score of filter ``f``: the mean over batches of ``Σ_{w ∈ f} (g_w · w)²``, ``g`` the loss's gradient."""

    name: ClassVar[str] = "taylor"

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``(g · w)²``."""
        return (weight * gradient).square()
