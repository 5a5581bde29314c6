"""Rounding of weights as they are."""

from __future__ import annotations

from typing import final

from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.wrapper import Wrapper


@final
class NaiveQuantizer(Quantizer):
    """Rounds weights to 8 bits over their range, ``w ← round(w / s) · s`` with ``s = max|w| / 127``.

    Activations are rounded only where ``quant_types`` names them, over the range at hand.
    """

    name = "naive"
    default_types = ("weight",)

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """The range at hand."""
        return FakeQuantize(grid)
