"""The number formats of onnxruntime's integer kernels, reproduced bit by bit.

    quantize     q = clamp(rne(x / s), lo − z, hi − z) + z          float32 division, round half to even
    dequantize   x = f32(q − z) · s
    requantize   q = clamp(rne(f32(acc) · m), lo − z, hi − z) + z   m = f32(f32(s_a · s_b) / s_y)

Accumulators are integers held in float64: exact below 2⁵³, and an int32 accumulator stays below 2³¹.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fxcompress.runtime.graphs import Array

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
DType = np.dtype[Any]
Inputs = Sequence[Array | None]


def present(inputs: Inputs, position: int) -> Array:
    """Input number ``position``, which the operator's schema requires."""
    value = inputs[position]
    assert value is not None
    return value


def optional(inputs: Inputs, position: int) -> Array | None:
    """Input number ``position`` if it is given."""
    return inputs[position] if position < len(inputs) else None


def scale(inputs: Inputs, position: int) -> np.float32:
    """A scale of a whole tensor, stored as a scalar or as one element."""
    return np.float32(present(inputs, position).reshape(()))


def zero(inputs: Inputs, position: int) -> int:
    """The zero point of a whole tensor; 0 where it is left out."""
    value = optional(inputs, position)
    return 0 if value is None else int(value.reshape(()))


def centred(values: Array, zero_point: Array | int) -> Doubles:
    """``q − z`` as float64."""
    return values.astype(np.float64) - np.asarray(zero_point, np.float64)


def _saturated(values: Floats, zero_point: Array | int, dtype: DType) -> Array:
    """``clamp(rne(values), lo − z, hi − z) + z``; the limits are integers, so clamping first is the same."""
    limits = np.iinfo(dtype)
    offset = np.asarray(zero_point, np.float32)
    rounded = np.rint(np.clip(values, np.float32(limits.min) - offset, np.float32(limits.max) - offset))
    return (rounded + offset).astype(dtype)


def quantized(values: Floats, step: Array | np.float32, zero_point: Array | int, dtype: DType) -> Array:
    """float32 values in steps of ``step``. The runtime divides; a product with ``1 / step`` would differ."""
    return _saturated(values / step, zero_point, dtype)


def dequantized(values: Array, step: Array | np.float32, zero_point: Array | int) -> Floats:
    """Integers as float32."""
    return centred(values, zero_point).astype(np.float32) * step


def requantized(accumulator: Doubles, multiplier: Array | np.float32, zero_point: int, dtype: DType) -> Array:
    """An integer accumulator in steps of the output."""
    return _saturated(accumulator.astype(np.float32) * multiplier, zero_point, dtype)


def rounded(values: Floats, dtype: DType) -> Array:
    """``clamp(rne(values), lo, hi)``, the zero point being part of ``values``."""
    return _saturated(values, 0, dtype)


def fma(a: Array | np.float32, b: Array | np.float32, c: Array | np.float32) -> Floats:
    """float32 ``a · b + c`` with one rounding, as a fused multiply-add instruction does it.

    The product of two float32 is exact in float64. Their sum with ``c`` is rounded to odd (TwoSum gives the
    error; where it is not 0 the last bit is made 1), and rounding that to float32 equals rounding the exact
    sum, since float64 has more than 24 + 2 bits (Boldo and Melquiond, 2008).
    """
    product = np.asarray(np.asarray(a, np.float64) * np.asarray(b, np.float64))
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    # The odd neighbour lies on the side of the error: away from zero if error and sum agree in sign.
    towards = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where((error != 0) & even, bits + towards, bits).view(np.float64)
    return odd.astype(np.float32).reshape(np.broadcast_shapes(product.shape, addend.shape))
