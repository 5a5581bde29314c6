"""Slim: channels whose BatchNorm scale is smallest (Liu et al., Learning Efficient Convolutional Networks
through Network Slimming, ICCV 2017).
"""

from __future__ import annotations

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fxcompress.errors import ConfigError
from fxcompress.graph.calls import Reference
from fxcompress.graph.module import get_tensor
from fxcompress.pruning.following import next_call
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import FilterPruner


@final
class SlimPruner(FilterPruner):
    """Score of channel ``c``: ``|γ_c|`` of the BatchNorm behind it, compared across layers with
    ``total_sparsity`` (the paper's global threshold).

    Train with ``loss + pruner.regularizer()`` first, which is ``scale · Σ |γ|`` over those norms, and prune
    when the scales have settled: ``pruner.update_mask()`` ranks them anew.

    Args:
        scale: weight of the regularizer (the paper's λ).
    """

    name: ClassVar[str] = "slim"
    comparable: ClassVar[bool] = True

    def __init__(self, *args: Any, scale: float = 1e-4, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = scale

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """None: the regularizer is added in a training loop, which ``compile`` has not."""
        return ()

    def score(self, layer: Layer) -> Tensor:
        """The magnitudes of the norm's scale."""
        return get_tensor(self._bound("score"), self._scale_of(layer)).detach().abs()

    def regularizer(self) -> Tensor:
        """``scale · Σ |γ|`` over the norms behind the selected layers, a scalar with gradient."""
        module = self._bound("regularizer")
        _, layers = self._analyzed()
        names = dict.fromkeys(self._scale_of(layer) for layer in layers)
        return self.scale * torch.stack([get_tensor(module, name).abs().sum() for name in names]).sum()

    def _scale_of(self, layer: Layer) -> Reference:
        found = next_call(self._flow, layer, ("batch_norm", "fxcompress.batch_norm"))
        scale = None if found is None else found[0].get("weight")
        weight = None if scale is None else self._flow.canonical(self._flow.behind_mask(scale))
        if not isinstance(weight, Reference):
            raise ConfigError(
                f"{layer.name}: pruner 'slim' ranks by the scale of the BatchNorm behind a layer, and there "
                "is none; exclude it, or choose pruner 'l1' for it"
            )
        return weight
