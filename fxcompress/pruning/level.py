"""Level: single weights of the smallest magnitude go first (Han et al., Learning both Weights and
Connections, NeurIPS 2015).
"""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor

from fxcompress.config.values import Granularity
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


@final
class LevelPruner(ScoringPruner):
    """Masks the ``floor(s · n)`` weights of smallest ``|w|`` of each layer; biases stay."""

    name: ClassVar[str] = "level"
    granularity: ClassVar[Granularity] = "element"
    comparable: ClassVar[bool] = True

    def importance(self, layer: Layer) -> Tensor:
        """``|w|``."""
        return layer.entries().abs()
