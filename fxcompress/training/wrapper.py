"""``LayerWrapper``: a selected layer as the seeds' algorithms see it."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcompress.errors import FxcompressError


class LayerWrapper:
    """A selected layer: ``name``, ``type``, ``config``, ``module``, and the tensors an algorithm works on.

    Anything else an algorithm wants to keep for a layer may be set as an attribute
    (``set_wrappers_attribute`` of the algorithm sets it on all of them).
    """

    def __init__(self, name: str, module: nn.Module, config: dict[str, Any]) -> None:
        self.name = name
        self.module = module
        self.type = type(module).__name__
        self.config = config

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight (of several the first), as it is stored.

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
        """The layer's bias, as it is stored; ``None`` if it has none."""
        return self.module._parameters.get("bias")

    def __getattr__(self, name: str) -> Any:
        """What was set on it; anything else is an error that names the layer."""
        layer = self.__dict__.get("name")
        raise AttributeError(
            f"the wrapper of layer {layer!r} has no {name!r}; an attribute of an algorithm's own is set with "
            f"set_wrappers_attribute({name!r}, value)"
        )

    def __repr__(self) -> str:
        """``Wrapper('conv1', Conv2d, {'sparsity': 0.5})``."""
        return f"{type(self).__name__}({self.name!r}, {self.type}, {self.config})"
