"""``WeightMasker``: an algorithm of the seeds that sees one layer and its sparsity at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxcompress.pruning.base import Pruner
from fxcompress.pruning.wrapper import Wrapper


class WeightMasker(ABC):
    """Computes the masks of a layer from its weight.

    Args:
        model: the model that is pruned.
        pruner: the pruner that asks.
    """

    def __init__(self, model: nn.Module, pruner: Pruner, **options: Any) -> None:
        self.model = model
        self.pruner = pruner
        self.options = options

    @abstractmethod
    def calc_mask(
        self, sparsity: float, wrapper: Wrapper, wrapper_idx: int | None = None
    ) -> Mapping[str, Tensor] | None:
        """``{"weight_mask": 0/1 tensor}``, and ``"bias_mask"`` where the bias is masked too.

        Args:
            sparsity: the share to mask, in [0, 1).
            wrapper: the layer.
            wrapper_idx: its index among ``pruner.wrappers``.
        """


class OneshotPruner(Pruner):
    """Masks every layer once, with ``masker_class``."""

    masker_class: ClassVar[type[WeightMasker]]

    def choose(self) -> None:
        """Ask the masker about every layer."""
        masker = self.masker_class(self.model, self)
        with torch.no_grad():
            masks = {w.name: masker.calc_mask(w.sparsity, w, index) for index, w in enumerate(self.wrappers)}
        self._set_masks(masks, f"{self.masker_class.__name__}.calc_mask")
