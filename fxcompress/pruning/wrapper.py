"""``Wrapper``: a selected layer as the seeds' algorithms see it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fxcompress.config.settings import PruningSettings
from fxcompress.errors import FxcompressError


class Wrapper:
    """A selected layer: ``name``, ``type``, ``config``, ``module``, and the tensors an algorithm works on.

    Anything else an algorithm wants to keep for a layer may be set as an attribute
    (``Pruner.set_wrappers_attribute`` sets it on all of them).
    """

    def __init__(self, name: str, module: nn.Module, settings: PruningSettings) -> None:
        self.name = name
        self.module = module
        self.type = type(module).__name__
        self.configure(settings)

    def configure(self, settings: PruningSettings) -> None:
        """Take other settings, those of another moment of a schedule."""
        self.config: dict[str, Any] = settings.given()
        self.sparsity = settings.sparsity or 0.0

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight (of several the first), without its mask.

        Raises:
            FxcompressError: if the layer has none of its own, only one that is computed.
        """
        own = [p for p in self.module._parameters.values() if p is not None and p.dim() > 1]
        weight = self.module._parameters.get("weight", own[0] if own else None)
        if weight is None:
            raise FxcompressError(
                f"layer {self.name!r} ({self.type}) has no weight of its own (it may be computed); exclude "
                "it in the config list"
            )
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The layer's bias, without its mask; ``None`` if it has none."""
        return self.module._parameters.get("bias")

    @property
    def weight_mask(self) -> Tensor | None:
        """The mask on the weight (the buffer itself), ``None`` before there is one."""
        return self.module._buffers.get("weight_mask")

    @property
    def bias_mask(self) -> Tensor | None:
        """The mask on the bias (the buffer itself), ``None`` before there is one."""
        return self.module._buffers.get("bias_mask")

    def __getattr__(self, name: str) -> Any:
        """What was set on it; anything else is an error that names the layer."""
        layer = self.__dict__.get("name")
        raise AttributeError(
            f"the wrapper of layer {layer!r} has no {name!r}; an attribute of an algorithm's own is set with "
            f"pruner.set_wrappers_attribute({name!r}, value)"
        )

    def __repr__(self) -> str:
        """``Wrapper('conv1', Conv2d, {'sparsity': 0.5})``."""
        return f"Wrapper({self.name!r}, {self.type}, {self.config})"
