"""Quantization after training: ranges are chosen on a few batches, nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import nn

from fxcompress.config import Selection
from fxcompress.errors import ConfigError, did_you_mean
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import OBSERVERS
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.wrapper import Wrapper


@final
class PTQ_Quantizer(Quantizer):
    """Chooses the ranges of activations by ``observer`` on ``data``; weights over their own range.

    ``observer``: ``minmax``, ``moving_average``, ``percentile``, ``mse`` or ``entropy``
    (``fxcompress.numerics.observers``).
    """

    name = "ptq"

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        data: Iterable[Any] | None = None,
        observer: str = "minmax",
        **options: Any,
    ) -> None:
        """As the base's, and ``observer``.

        Raises:
            ConfigError: for an unknown observer.
        """
        names = [name for name in OBSERVERS if name not in ("last", "fixed")]
        if observer not in names:
            hint = did_you_mean(observer, names) or f"; expected one of {', '.join(names)}"
            raise ConfigError(f"observer: expected the name of an observer, got {observer!r}{hint}")
        super().__init__(model, config_list, optimizer, data=data, **options)
        self.observer = observer

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """Of an activation the chosen observer, which sees what ``calibrate`` shows it and no training."""
        if quant_type == "weight":
            return FakeQuantize(grid)
        quantizer = FakeQuantize(grid, OBSERVERS[self.observer]())
        quantizer.observing = False
        return quantizer
