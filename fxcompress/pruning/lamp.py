"""LAMP: magnitudes that compare across layers (Lee et al., Layer-adaptive Sparsity for the Magnitude-based
Pruning, ICLR 2021).
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.config.values import Granularity
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


@final
class LAMPPruner(ScoringPruner):
    """Score of weight ``u``: ``w_u² / Σ_{v: w_v² ≥ w_u²} w_v²``, the sum over the layer's weights that would
    outlive it. Meant for ``total_sparsity``: within one layer the order is that of the magnitudes.
    """

    name: ClassVar[str] = "lamp"
    granularity: ClassVar[Granularity] = "element"
    comparable: ClassVar[bool] = True

    def importance(self, layer: Layer) -> Tensor:
        """Every weight's share of what is at least as large."""
        return _share(layer.entries().double().square())

    def score(self, layer: Layer) -> Tensor:
        """The same of whole filters, by their squared norms (the paper's form for structured pruning)."""
        return _share(layer.filters().double().square().sum(1))


def _share(squares: Tensor) -> Tensor:
    flat = squares.flatten()
    order = flat.argsort(descending=True, stable=True)
    total = flat[order].cumsum(0)
    share = torch.zeros_like(flat)
    share[order] = torch.where(total > 0, flat[order] / total, 0.0)
    return share.view_as(squares)
