"""``BlockFakeQuantize``: an activation in signed 8 bits, with a scale for every few features of every row.

    x [..., in]  →  [..., blocks, size]  →  s = max|x| / 127 of each block,  x̂ = round(x · (127 / max|x|)) · s

which is how onnxruntime's ``MatMulNBits`` rounds its input at ``accuracy_level`` 4 (1.31: equal up to the
order of sums), so that the products with weights of few bits are products of integers. The last block is
filled up with zeros, which change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import Observer


def rounded_in_blocks(x: Tensor, size: int) -> Tensor:
    """``x̂``, of the shape of ``x``."""
    blocks = F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))
    largest = blocks.abs().amax(-1, keepdim=True)
    steps = torch.round(blocks * torch.where(largest > 0, 127 / largest, 0.0))
    rounded: Tensor = (steps * (largest / 127)).flatten(-2)[..., : x.shape[-1]]
    return rounded


@storable
class BlockFakeQuantize(FakeQuantize):
    """Rounds over the range at hand of every block, in train and in eval mode; all gradients pass."""

    def __init__(self, size: int) -> None:
        super().__init__(Grid(8, signed=True, symmetric=True))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``x̂``; no range is kept."""
        return self.simulate(x) if self.quantizing else x

    def simulate(self, x: Tensor) -> Tensor:
        """``x̂``."""
        rounded = rounded_in_blocks(x.detach(), self.size)
        return rounded + (x - x.detach()) if x.requires_grad else rounded

    def options(self) -> dict[str, Any]:
        """The base's, and the size of a block."""
        return {**super().options(), "size": self.size}

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> BlockFakeQuantize:
        return cls(int(options["size"]))

    def extra_repr(self) -> str:
        """``8-bit signed symmetric, in blocks of 32``."""
        return f"8-bit signed symmetric, in blocks of {self.size}"
