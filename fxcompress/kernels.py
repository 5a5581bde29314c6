"""Linear layers as onnxruntime runs them with weights of few bits: operators of a converted graph.

    fxcompress::matmul_nbits     y = x · ((Q − Z) · S)ᵀ, x as it is or   com.microsoft::MatMulNBits
                                 rounded to int8 in blocks
    fxcompress::dynamic_matmul   y = f32((q(x) − z) · W) · (s_x · s_w)   DynamicQuantizeLinear, MatMulInteger

They are registered with torch, so that ``torch.export`` keeps them as they are; each computes what the
runtime's kernel does, up to the order of float additions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress.numerics.blocks import rounded_in_blocks
from fxcompress.numerics.dynamic import DynamicFakeQuantize


def pack(integers: Tensor, bits: int) -> Tensor:
    """Unsigned integers of 4 or 8 bits in bytes along the last dimension, the first in the low bits; an odd
    one out is followed by zeros.
    """
    if bits == 8:
        return integers.contiguous()
    padded = F.pad(integers, (0, integers.shape[-1] % 2))
    return padded[..., ::2] | (padded[..., 1::2] << 4)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack`` (with the zeros)."""
    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def dequantized(
    packed: Tensor, scales: Tensor, zero_points: Tensor | None, features: int, bits: int
) -> Tensor:
    """``(Q − Z) · S``, ``[out, features]``; see ``matmul_nbits``."""
    rows, groups = scales.shape
    integers = unpack(packed.reshape(rows, -1), bits).reshape(rows, groups, -1).to(scales.dtype)
    zeros: Tensor | int = 1 << (bits - 1)
    if zero_points is not None:
        zeros = unpack(zero_points, bits)[:, :groups, None].to(scales.dtype)
    return ((integers - zeros) * scales[:, :, None]).reshape(rows, -1)[:, :features]


_NBITS = (
    "(Tensor x, Tensor packed, Tensor scales, Tensor? zero_points, int K, int N, int bits, int block_size,"
    " int accuracy_level) -> Tensor"
)


@torch.library.custom_op("fxcompress::matmul_nbits", mutates_args=(), schema=_NBITS)
def matmul_nbits(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    K: int,
    N: int,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    """A linear layer without bias whose weight is ``[N, K]`` in groups of ``block_size`` inputs.

    Args:
        x: ``[..., K]``.
        packed: uint8 ``[N, groups, block_size · bits / 8]``, see ``pack``.
        scales: ``[N, groups]``.
        zero_points: uint8 ``[N, ⌈groups · bits / 8⌉]``; without, all are ``2^(bits − 1)``.
        K: inputs.
        N: outputs.
        bits: 4 or 8.
        block_size: inputs that share a scale; a power of two from 16.
        accuracy_level: 4: ``x`` is rounded to int8 in blocks of that size; 0: it is not.
    """
    x = rounded_in_blocks(x, block_size) if accuracy_level == 4 else x
    return F.linear(x, dequantized(packed, scales, zero_points, K, bits).to(x.dtype))


@matmul_nbits.register_fake
def _(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    K: int,
    N: int,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], N))


@torch.library.custom_op(
    "fxcompress::dynamic_matmul", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor scale) -> Tensor"
)
def dynamic_matmul(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """A linear layer without bias on integers, ``x`` being rounded over its own range.

    Args:
        x: float32 ``[..., K]``.
        weight: int8 ``[K, N]``.
        scale: of the weight, float32 ``[N]``, or ``[]``.
    """
    rounding = DynamicFakeQuantize()
    rounding.observe(x)
    centred = torch.round(x / rounding.scale).double()
    low, high = -rounding.zero_point.double(), 255 - rounding.zero_point.double()
    exact = centred.clamp(low, high) @ weight.double()  # integers far below 2^53
    return exact.float() * (rounding.scale * scale)


@dynamic_matmul.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))
