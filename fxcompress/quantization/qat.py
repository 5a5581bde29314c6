"""Quantization-aware training: ranges that follow the data, rounding in every forward pass."""

from __future__ import annotations

from typing import final

from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import MovingAverageObserver
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.wrapper import Wrapper


@final
class QAT_Quantizer(Quantizer):
    """Rounds weights over their range, activations over an average of theirs that moves in training.

    ``m ← 0.99 · m + 0.01 · min(x)``, likewise for the maximum; ``quant_start_step`` optimizer steps train
    without rounding, while ranges settle. In eval mode ranges stay. The gradient passes straight through
    within the range and is 0 outside (Jacob et al., Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference, CVPR 2018).
    """

    name = "qat"

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """Of a weight the range at hand, of an activation the moving average."""
        return FakeQuantize(grid, None if quant_type == "weight" else MovingAverageObserver())
