"""``Wrapper``: a layer that a pruner works on."""

from __future__ import annotations

from torch import Tensor, nn

from fxcompress.config.settings import PruningSettings
from fxcompress.training.wrapper import LayerWrapper


class Wrapper(LayerWrapper):
    """A ``LayerWrapper`` with a sparsity and masks."""

    def __init__(self, name: str, module: nn.Module, settings: PruningSettings) -> None:
        super().__init__(name, module, {})
        self.configure(settings)

    def configure(self, settings: PruningSettings) -> None:
        """Take other settings, those of another moment of a schedule."""
        self.config = settings.given()
        self.sparsity = settings.sparsity or 0.0

    @property
    def weight_mask(self) -> Tensor | None:
        """The mask on the weight (the buffer itself), ``None`` before there is one."""
        return self.module._buffers.get("weight_mask")

    @property
    def bias_mask(self) -> Tensor | None:
        """The mask on the bias (the buffer itself), ``None`` before there is one."""
        return self.module._buffers.get("bias_mask")
