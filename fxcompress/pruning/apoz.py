"""APoZ: channels that are zero most of the time (Hu et al., Network Trimming, 2016)."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.activations import ActivationRankPruner


@final
class ActivationAPoZRankFilterPruner(ActivationRankPruner):
    """Score of channel ``c``: ``1 −`` the average percentage of zeros of the activation behind it."""

    name: ClassVar[str] = "apoz"

    def contribution(self, values: Tensor) -> Tensor:
        """The share of entries that are not zero."""
        return (values != 0).double().mean(1)
