"""Mean activation: channels whose activation is smallest on average (Molchanov et al., Pruning Convolutional
Neural Networks for Resource Efficient Inference, ICLR 2017).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.pruning.activations import ActivationRankPruner


@final
class ActivationMeanRankFilterPruner(ActivationRankPruner):
    """Score of channel ``c``: the mean of the activation behind it, over examples and positions."""

    name: ClassVar[str] = "mean_activation"

    def contribution(self, values: Tensor) -> Tensor:
        """The mean of the entries."""
        return values.double().mean(1)
