"""``DynamicFakeQuantize``: an activation rounded over the range it has in this very forward pass.

    low = min(0, min x),  high = max(0, max x),  s = (high − low) / 255,  z = clamp(round(−low / s), 0, 255)
    x̂ = (clamp(round(x / s) + z, 0, 255) − z) · s

which is ONNX's ``DynamicQuantizeLinear`` and the arithmetic of onnxruntime: ``x / s`` where
``torch.fake_quantize_*`` multiply by ``1 / s``, so that no value falls on the other side of a half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import Observer

DYNAMIC = Grid(8, signed=False, symmetric=False)
"""The one grid that ``DynamicQuantizeLinear`` has."""


@storable
class DynamicFakeQuantize(FakeQuantize):
    """Rounds to unsigned 8 bits over the range at hand, in train and in eval mode; all gradients pass."""

    def __init__(self) -> None:
        super().__init__(DYNAMIC)

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> DynamicFakeQuantize:
        return cls()

    def simulate(self, x: Tensor) -> Tensor:
        """``x̂``."""
        values = x.detach().float()
        steps = torch.round(values / self.scale) + self.zero_point
        rounded = (steps.clamp(0, 255) - self.zero_point) * self.scale
        rounded = rounded.to(x.dtype)
        return rounded + (x - x.detach()) if x.requires_grad else rounded

    def extra_repr(self) -> str:
        """``8-bit unsigned affine, dynamic``."""
        return "8-bit unsigned affine, dynamic"
