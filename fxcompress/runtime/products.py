"""Convolutions and matrix products of integers.

    QLinearConv, QGemm, QLinearMatMul    y = requantize(Σ (x − z_x)(w − z_w) + b, s_x · s_w / s_y)
    MatMulIntegerToFloat, QGemm (no s_y) y = f32(acc) · f32(s_x · s_w) (+ float bias)

``b`` is the int32 bias at scale ``s_x · s_w``, ``s_w`` one scale for the tensor or for each output channel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from fxcompress.runtime.arithmetic import (
    Doubles,
    Inputs,
    centred,
    optional,
    present,
    requantized,
    scale,
    zero,
)
from fxcompress.runtime.graphs import Array, Node
from fxcompress.runtime.windows import Windows

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _zeros(inputs: Inputs, position: int) -> Array:
    """Zero points of a weight: one, or one for each channel."""
    value = optional(inputs, position)
    return np.zeros((), np.int64) if value is None else value.astype(np.int64)


def _multiplier(left: np.float32, right: Array, output: Array | None) -> Array:
    """``f32(f32(left · right) / output)``; without an output scale just the product."""
    product = left * right.astype(np.float32)
    return product if output is None else product / np.float32(output.reshape(()))


def qlinear_conv(node: Node, inputs: Inputs) -> Array:
    """Grouped, strided, dilated, padded convolution in 1 to 3 dimensions. Padding is the zero point."""
    x, w, zeros = present(inputs, 0), present(inputs, 3), present(inputs, 7)
    windows = Windows.of(node, x.shape[2:], w.shape[2:])
    per_channel = (-1,) + (1,) * (w.ndim - 1)
    values = centred(x, zero(inputs, 2))
    weight = centred(w, _zeros(inputs, 5).reshape(per_channel))
    bias = optional(inputs, 8)
    accumulator = _CONVOLUTIONS[w.ndim - 2](
        torch.from_numpy(np.pad(values, [(0, 0), (0, 0), *windows.pads])),
        torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias.astype(np.float64)),
        stride=windows.strides,
        dilation=windows.dilations,
        groups=int(node.attributes.get("group", 1)),
    ).numpy()
    multiplier = _multiplier(scale(inputs, 1), present(inputs, 4), present(inputs, 6))
    return requantized(accumulator, multiplier.reshape(per_channel[:-1]), zero(inputs, 7), zeros.dtype)


def qgemm(node: Node, inputs: Inputs) -> Array:
    """``alpha · A B + C``; float32 where the output has no scale."""
    a, b = centred(present(inputs, 0), zero(inputs, 2)), present(inputs, 3)
    b = b.T if node.attributes.get("transB") else b
    a = a.T if node.attributes.get("transA") else a
    accumulator = a @ centred(b, _zeros(inputs, 5))
    bias = optional(inputs, 6)
    if bias is not None:
        accumulator = accumulator + bias
    alpha = np.float32(node.attributes.get("alpha", 1.0)) * scale(inputs, 1)
    multiplier = _multiplier(alpha, present(inputs, 4), optional(inputs, 7))
    zeros = optional(inputs, 8)
    if zeros is None:
        return accumulator.astype(np.float32) * multiplier
    return requantized(accumulator, multiplier, zero(inputs, 8), zeros.dtype)


def qlinear_matmul(node: Node, inputs: Inputs) -> Array:
    """Batched ``A B``; scales of ``B`` for the tensor or for each column."""
    multiplier = _multiplier(scale(inputs, 1), present(inputs, 4), present(inputs, 6))
    accumulator = _product(inputs, (0, 2), (3, 5))
    return requantized(accumulator, multiplier, zero(inputs, 7), present(inputs, 7).dtype)


def matmul_integer_to_float(node: Node, inputs: Inputs) -> Array:
    """Batched ``A B`` that leaves the integers: float32, with a float bias."""
    multiplier = _multiplier(scale(inputs, 2), present(inputs, 3), None)
    product = _product(inputs, (0, 4), (1, 5)).astype(np.float32) * multiplier
    bias = optional(inputs, 6)
    return product if bias is None else product + bias


def _product(inputs: Inputs, left: tuple[int, int], right: tuple[int, int]) -> Doubles:
    a = centred(present(inputs, left[0]), zero(inputs, left[1]))
    result: Doubles = np.matmul(a, centred(present(inputs, right[0]), _zeros(inputs, right[1])))
    return result
