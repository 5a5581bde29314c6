"""Random: the baseline every criterion has to beat (Mittal et al., Recovering from Random Pruning, WACV
2018).
"""

from __future__ import annotations

import zlib
from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


@final
class RandomPruner(ScoringPruner):
    """Scores drawn uniformly from [0, 1); the same for the same layer name and ``torch.initial_seed()``."""

    name: ClassVar[str] = "random"

    def importance(self, layer: Layer) -> Tensor:
        """One draw per weight."""
        return torch.rand(layer.entries().shape, generator=self._generator(layer))

    def score(self, layer: Layer) -> Tensor:
        """One draw per output channel."""
        return torch.rand(len(layer.filters()), generator=self._generator(layer))

    @staticmethod
    def _generator(layer: Layer) -> torch.Generator:
        return torch.Generator().manual_seed(torch.initial_seed() ^ zlib.crc32(layer.name.encode()))
