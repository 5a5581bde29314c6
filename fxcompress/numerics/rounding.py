"""``rounded``: what ``torch.fake_quantize_*`` compute, to the bit, in vectorized operations.

    forward    x̂ = clamp(round(x · 1/s), low, high) · s          with low = qmin − z, high = qmax − z
    backward   ∂x = ∂x̂ where low − ½ < x/s < high + ½, else 0  (straight-through, clipped)

Torch's CPU kernels take one element at a time: forward and backward together cost twice to three times as
much (``benchmarks/qat_step.py``), and they keep a mask, where here the operand is kept, which the operator
in front mostly keeps anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rounded(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """``x̂``; ``scale`` broadcasts to ``x``."""
    return _Rounding.apply(x, scale, low, high)  # type: ignore[no-any-return, no-untyped-call]


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        inverse = 1.0 / scale
        ctx.save_for_backward(x, scale, inverse)
        ctx.ends = low - 0.5, high + 0.5
        return (x * inverse).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, inverse = ctx.saved_tensors
        low, high = ctx.ends
        if scale.numel() == 1:
            step = scale.item()
            low, high = low * step, high * step
        else:
            x = x * inverse
        within: Tensor = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        return within, None, None, None
