"""``Grid``: the integers that a tensor is rounded to, and the scale and zero point that a range gives.

    q = clamp(round(x / scale) + zero_point, qmin, qmax),    x̂ = (q − zero_point) · scale

``scale`` (float32, positive) and ``zero_point`` (int32) are one number per tensor or one per slice of
``axis``. The one place where they are computed: training and deployment share it (Jacob et al.,
Quantization and Training of Neural Networks, CVPR 2018; Krishnamoorthi 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxcompress.errors import ConfigError
from fxcompress.numerics.rounding import rounded

SMALLEST_SCALE = 2.0**-96
"""A tensor of zeros gets this one; its inverse is a float32 still."""


@dataclass(frozen=True)
class Grid:
    """``bits`` per number; ``axis`` is the dimension with a scale of its own for every slice."""

    bits: int
    signed: bool
    symmetric: bool
    axis: int | None = None
    power_of_two: bool = False
    """Scales are rounded up to powers of two: products and quotients of scales are then exact."""

    def check(self) -> None:
        """Refuse a grid of a single number.

        Raises:
            ConfigError: for one signed symmetric bit.
        """
        if self.qmin >= self.qmax:
            raise ConfigError(
                f"quant_bits: expected at least 2 for a signed symmetric grid, got {self.bits}; the numbers "
                "of one bit are -1 and 1: use quantizer 'bnn'"
            )

    @property
    def qmin(self) -> int:
        """The smallest integer; a symmetric signed grid leaves the one without a counterpart out."""
        return -(1 << (self.bits - 1)) + int(self.symmetric) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - self.signed)) - 1

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for values from ``low`` to ``high`` (0 is always among them).

        Affine: ``scale = (high − low) / (qmax − qmin)``, ``zero_point = qmin − round(low / scale)``.
        Symmetric: ``scale = max(−low, high) / max(qmax − z, z − qmin)`` with ``z`` 0, or the middle of an
        unsigned grid.

        Args:
            low: smallest values, ``[]`` or ``[slices]``.
            high: largest values, of the same shape.
        """
        low, high = low.float(), high.float()
        if self.symmetric:
            middle = 0 if self.signed else 1 << (self.bits - 1)
            # Of an unsigned grid the short side, as the other has a number to spare.
            scale = self.snapped(torch.maximum(-low, high) / (self.qmax - middle))
            return scale, torch.full_like(scale, middle, dtype=torch.int32)
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = self.snapped((high - low) / (self.qmax - self.qmin))
        zero_point = self.qmin - torch.round(low / scale)
        return scale, zero_point.clamp(self.qmin, self.qmax).to(torch.int32)

    def snapped(self, scale: Tensor) -> Tensor:
        """The next scale that the grid may have: positive, and a power of two where it asks for one."""
        if self.power_of_two:
            scale = torch.exp2(torch.ceil(torch.log2(scale.clamp(min=SMALLEST_SCALE))))
        return scale.clamp(min=SMALLEST_SCALE)

    def range(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest number that the grid holds."""
        return (self.qmin - zero_point) * scale, (self.qmax - zero_point) * scale

    def fake_quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """``x̂``; the gradient is 1 within the grid's range and 0 outside (straight-through, clipped)."""
        if x.dtype in (torch.float16, torch.bfloat16):  # they cannot hold every number of the grid
            return self.fake_quantize(x.float(), scale, zero_point).to(x.dtype)
        scale, ends = scale.float(), (self.qmin, self.qmax)
        if torch.compiler.is_compiling():
            if self.axis is None:  # the kernel for one scale would interrupt it
                one = replace(self, axis=0)
                return one.fake_quantize(x.unsqueeze(0), scale.view(1), zero_point.view(1)).squeeze(0)
        elif x.device.type == "cpu" and (self.axis is None or (self.symmetric and self.signed)):
            zero = int(zero_point.item()) if self.axis is None else 0
            return rounded(x, self.aligned(scale, x), self.qmin - zero, self.qmax - zero)
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *ends)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, self.axis, *ends)

    def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """``q`` as int32, rounded as ``fake_quantize`` does: ``round(x · (1 / scale))``, halves to even."""
        scale, zero_point = self.aligned(scale, x), self.aligned(zero_point, x)
        q = torch.round(x * (1.0 / scale)) + zero_point
        return q.clamp(self.qmin, self.qmax).to(torch.int32)

    def aligned(self, values: Tensor, x: Tensor) -> Tensor:
        """One number per slice of ``axis``, as it broadcasts to ``x``."""
        if self.axis is None:
            return values
        return values.view([-1 if d == self.axis % x.dim() else 1 for d in range(x.dim())])


BIAS = Grid(32, signed=True, symmetric=False, axis=0)
"""The integers of a bias, at the product of the scales of input and weight."""


def bias_scale(of_input: Tensor, of_weight: Tensor, channels: int) -> Tensor:
    """``s_x · s_w`` for each of a layer's output channels, float32 ``[channels]``. The groups of a transposed
    convolution share the scales of their weight.
    """
    scale = of_input * of_weight
    repeats = channels // scale.numel() if scale.dim() else channels
    return scale.repeat(repeats)
