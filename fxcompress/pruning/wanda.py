"""Wanda: magnitude times the norm of what it multiplies (Sun et al., A Simple and Effective Pruning Approach
for Large Language Models, ICLR 2024).
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, fx

from fxcompress.config.values import Granularity
from fxcompress.errors import ConfigError
from fxcompress.graph.calls import operand
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.measuring import ActivationPruner


@final
class WandaPruner(ActivationPruner):
    """Score of weight ``w_ij``: ``|w_ij| · ‖x_j‖₂``, the norm over all tokens measured; of every output the
    ``floor(s · n)`` lowest of its ``n`` weights go. Linear layers only, no training needed.
    """

    name: ClassVar[str] = "wanda"
    op_types: ClassVar[frozenset[str]] = frozenset(("Linear", "Conv1D"))
    granularity: ClassVar[Granularity] = "row"

    def observed(self, layer: Layer) -> tuple[fx.Node, int]:
        """The layer's input and its feature dimension."""
        source = operand(layer.call)
        if not isinstance(source, fx.Node):
            raise ConfigError(
                f"{layer.name}: pruner 'wanda' measures its input, which is a parameter; exclude it"
            )
        return source, len(source.meta["tensor"].shape) - 1

    def contribution(self, values: Tensor) -> Tensor:
        """The sum of squares of every input feature."""
        return values.double().square().sum(1)

    def importance(self, layer: Layer) -> Tensor:
        """``|w_ij| · ‖x_j‖₂``."""
        norms = self.sums[layer.name].sqrt()
        return layer.entries().abs() * torch.as_tensor(norms, dtype=layer.weight.dtype).view(1, 1, -1, 1)
