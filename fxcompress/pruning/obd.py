"""OBD: weights whose removal changes the loss least, to second order (LeCun, Denker, Solla, Optimal Brain
Damage, NeurIPS 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxcompress.errors import ConfigError
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.measuring import GradientPruner


@final
class OBDPruner(GradientPruner):
    """Score of weight ``w``: ``½ · h_w · w²``, ``h`` the diagonal of the loss's Hessian ``H``.

    The diagonal is estimated as the mean of ``v ⊙ (H v)`` over batches and ``draws`` vectors ``v`` of random
    signs each (Hutchinson's estimator; Bekas, Kokiopoulou, Saad, Applied Numerical Mathematics 2007), so
    ``data`` is needed: gradients of one's own training loop hold no second derivatives.
    """

    name: ClassVar[str] = "obd"
    draws: ClassVar[int] = 4

    def derivatives(self, loss: Tensor, weights: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """An estimate of the Hessian's diagonal."""
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        known = [g for g in gradients if g is not None and g.requires_grad]
        total: list[Tensor | None] = [None] * len(weights)
        for _ in range(self.draws if known else 0):
            signs = [torch.randint_like(w, 2) * 2 - 1 for w in weights]
            pairs = zip(gradients, signs, strict=True)
            slope = torch.stack([(g * v).sum() for g, v in pairs if g is not None]).sum()
            products = torch.autograd.grad(slope, weights, retain_graph=True, allow_unused=True)
            for index, (product, sign) in enumerate(zip(products, signs, strict=True)):
                if product is not None:
                    before = total[index]
                    share = product * sign / self.draws
                    total[index] = share if before is None else before + share
        return total

    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """``½ h w²``."""
        return 0.5 * gradient * weight.square()

    def measure(self, layers: list[Layer], batches: Any) -> None:
        """Run forward and backward twice; fused attention kernels have no second derivative."""
        with sdpa_kernel(SDPBackend.MATH):
            super().measure(layers, batches)

    def watch(self, layers: list[Layer]) -> None:
        """Refuse: there is nothing to read in front of an optimizer's step."""
        raise ConfigError(
            "pruner 'obd' takes second derivatives of the loss: expected data=... and loss_fn=..., got an "
            "optimizer only; pass them, or choose pruner 'taylor'"
        )
