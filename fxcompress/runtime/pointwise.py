"""Element by element: sums, products, tables.

    QLinearAdd       rA = s_a / s_y, rB = s_b / s_y, fixed = z_y − fma(rA, z_a, rB · z_b)
                     y = rne(fma(a, rA, fma(b, rB, fixed)))
    QLinearMul       y = rne((a − z_a)(b − z_b) · (s_a · s_b / s_y) + z_y)
    QLinearConcat    each part through a table: quantize(dequantize(x))
    QLinearSigmoid, QLinearLeakyRelu   a table of the 256 values: quantize(f(dequantize(x)))
    QLinearWhere     both branches through such tables
    QLinearSoftmax   a table of exponentials, a float32 sum, one division

The order of the fused multiply-adds is that of the AVX2 kernel; other instruction sets have others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from fxcompress.runtime.arithmetic import (
    DType,
    Floats,
    Inputs,
    centred,
    dequantized,
    fma,
    present,
    quantized,
    rounded,
    scale,
    zero,
)
from fxcompress.runtime.graphs import Array, Node
from fxcompress.runtime.single import run_operator


def qlinear_add(node: Node, inputs: Inputs) -> Array:
    """A sum; ``a`` and ``b`` change places where ``a`` is one number along the last axes."""
    first, second = inputs[0:3], inputs[3:6]
    if _is_scalar(present(first, 0).shape, present(second, 0).shape):
        first, second = second, first
    output = scale(inputs, 6)
    ratio_a, ratio_b = scale(first, 1) / output, scale(second, 1) / output
    zero_a, zero_b = np.float32(zero(first, 2)), np.float32(zero(second, 2))
    fixed = np.float32(zero(inputs, 7)) - fma(ratio_a, zero_a, ratio_b * zero_b)
    total = fma(present(first, 0), ratio_a, fma(present(second, 0), ratio_b, fixed))
    return rounded(total, present(inputs, 0).dtype)


def _is_scalar(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the kernel sees one number of ``shape`` for each stretch of ``other``."""
    for mine, its in zip_longest(reversed(shape), reversed(other), fillvalue=1):
        if mine != 1 or its != 1:
            return mine == 1
    return True


def qlinear_mul(node: Node, inputs: Inputs) -> Array:
    """A product; the integers multiply exactly."""
    product = centred(present(inputs, 0), zero(inputs, 2)) * centred(present(inputs, 3), zero(inputs, 5))
    ratio = scale(inputs, 1) * scale(inputs, 4) / scale(inputs, 6)
    return rounded(product.astype(np.float32) * ratio + np.float32(zero(inputs, 7)), present(inputs, 0).dtype)


def _table(dtype: DType, function: Callable[[Floats], Floats], inputs: Inputs, into: Inputs) -> Array:
    """The outputs for all 256 inputs, by their bit pattern. ``inputs`` and ``into``: scale and zero point."""
    values = np.arange(256, dtype=np.uint8).view(dtype)
    return quantized(
        function(dequantized(values, scale(inputs, 0), zero(inputs, 1))), scale(into, 0), zero(into, 1), dtype
    )


def _look_up(values: Array, table: Array) -> Array:
    found: Array = table[values.view(np.uint8)]
    return found


def qlinear_sigmoid(node: Node, inputs: Inputs) -> Array:
    """The float Sigmoid of onnxruntime on 256 values."""
    x = present(inputs, 0)
    return _look_up(x, _table(x.dtype, _sigmoid, inputs[1:3], inputs[3:5]))


def _sigmoid(values: Floats) -> Floats:
    """onnxruntime's own polynomial: the table is part of the runtime, not of the integer arithmetic."""
    [result] = run_operator("Sigmoid", [values])
    return result


def qlinear_leaky_relu(node: Node, inputs: Inputs) -> Array:
    """``x`` above 0, ``alpha · x`` below."""
    x, alpha = present(inputs, 0), np.float32(node.attributes.get("alpha", 0.01))
    return _look_up(x, _table(x.dtype, lambda v: np.where(v >= 0, v, alpha * v), inputs[1:3], inputs[3:5]))


def _rescaled(x: Array, params: Inputs, output: Inputs) -> Array:
    """``x`` in steps of the output; where both agree the bytes are copied."""
    if scale(params, 0) == scale(output, 0) and zero(params, 1) == zero(output, 1):
        return x
    return _look_up(x, _table(x.dtype, lambda v: v, params, output))


def qlinear_concat(node: Node, inputs: Inputs) -> Array:
    """Inputs: output scale and zero point, then value, scale and zero point of each part."""
    parts = [
        _rescaled(present(inputs, i), inputs[i + 1 : i + 3], inputs[:2]) for i in range(2, len(inputs), 3)
    ]
    return np.concatenate(parts, axis=node.attributes["axis"])


def qlinear_where(node: Node, inputs: Inputs) -> Array:
    """Inputs: condition; value, scale, zero point of both branches; scale and zero point of the output."""
    output = inputs[7:9]
    yes = _rescaled(present(inputs, 1), inputs[2:4], output)
    return np.where(present(inputs, 0), yes, _rescaled(present(inputs, 4), inputs[5:7], output))


def qlinear_softmax(node: Node, inputs: Inputs) -> Array:
    """``y = rne(e · floor(1 / s_y) / Σ e) + z_y``, ``e`` from a table aligned to the largest input.

    The runtime overflows, and gives garbage, where ``1 / s_y`` exceeds ``e⁵`` times the length of the axis.
    """
    axis = int(node.attributes.get("axis", -1 if node.attributes["opset"] >= 13 else 1))
    x = present(inputs, 0)
    order = np.moveaxis(x, axis, -1) if node.attributes["opset"] >= 13 else x.reshape(*x.shape[:axis], -1)
    lowest = int(np.iinfo(x.dtype).min)
    table = _exponentials(float(scale(inputs, 1)), order.shape[-1])
    codes = order.astype(np.int64) - lowest
    exponentials = table[codes + 255 - codes.max(-1, keepdims=True)]
    total = np.zeros(order.shape[:-1], np.float32)
    for column in np.moveaxis(exponentials, -1, 0):
        total = total + column  # one after the other, as the kernel sums
    steps = np.floor(np.float32(1) / scale(inputs, 3))
    shares = np.rint(exponentials * steps / total[..., None]) + zero(inputs, 4)
    result = np.clip(shares, lowest, np.iinfo(x.dtype).max).astype(x.dtype)
    return np.moveaxis(result, -1, axis) if node.attributes["opset"] >= 13 else result.reshape(x.shape)


def _exponentials(step: float, count: int) -> Floats:
    """``exp((i − 255 + shift) · step)``, i = 0…255; the shift keeps the sum of ``count`` of them finite."""
    largest = np.log(np.finfo(np.float32).max / np.float32(count))  # float32, as in the kernel
    shift = max(0.0, float(largest) - 5) / step
    return np.array([math.exp((i - 255 + shift) * step) for i in range(256)], np.float64).astype(np.float32)
