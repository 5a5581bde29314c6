"""What algorithms share that rank channels by the activation behind a layer."""

from __future__ import annotations

from abc import ABC
from typing import Any

from torch import Tensor, fx

from fxcompress.errors import ConfigError
from fxcompress.pruning.following import next_call
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.measuring import ActivationPruner
from fxcompress.pruning.scoring import FilterPruner

ACTIVATIONS = {
    "relu": ("relu", "relu_", "relu6", "hardtanh", "clamp_min", "threshold"),
    "relu6": ("relu6", "hardtanh", "clamp"),
    "gelu": ("gelu",),
    "silu": ("silu", "hardswish", "mish"),
}
"""Name of an activation → the operators it stands for."""


class ActivationRankPruner(ActivationPruner, FilterPruner, ABC):
    """Looks at the activation function that a layer's output channels pass through first.

    Args:
        activation: which function, a key of ``ACTIVATIONS``; any of them by default. A layer with none behind
            it is ranked by its own output.
    """

    def __init__(self, *args: Any, activation: str | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        if activation is not None and activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation: expected one of {', '.join(map(repr, ACTIVATIONS))}, got {activation!r}; "
                "leave it out for the first activation behind each layer"
            )
        chosen = ACTIVATIONS.values() if activation is None else [ACTIVATIONS[activation]]
        self._operators = frozenset(op for operators in chosen for op in operators)

    def observed(self, layer: Layer) -> tuple[fx.Node, int]:
        """The activation's node, or the layer's own, and its channel dimension."""
        found = next_call(self._flow, layer, self._operators)
        if found is not None:
            return found[0].node, found[1]
        axes = [axis.find() for axis in self._flow.axes(layer.call.node)]
        return layer.call.node, axes.index(layer.outputs.find())

    def score(self, layer: Layer) -> Tensor:
        """The mean measurement of each channel."""
        return self.mean(layer)
