"""OBD: weights whose removal changes the loss least, to second order (LeCun, Denker, Solla, Optimal Brain
Damage, NeurIPS 1989).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.measuring import GradientPruner


@final
class OBDPruner(GradientPruner):
    """Score of weight ``w``: ``½ · h_w · w²``, the Hessian's diagonal ``h`` taken as the mean over batches of
    the squared gradient (the empirical Fisher information; equal at an optimum of a log likelihood when the
    batches hold one example).
    """

    name: ClassVar[str] = "obd"

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``½ g² w²``."""
        return 0.5 * (weight * gradient).square()
