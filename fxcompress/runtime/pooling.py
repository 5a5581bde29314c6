"""Poolings.

QLinearGlobalAveragePool   y = requantize(Σ (x − z_x), s_x / (s_y · n))
QLinearAveragePool         the same where one window is the whole image; else in float32:
                           y = clamp(rne(f32(Σ s_x (x − z_x) / n) / s_y + z_y)), summed place by place
MaxPool                    the largest number
"""

from __future__ import annotations

import numpy as np

from fxcompress.runtime.arithmetic import (
    Inputs,
    centred,
    dequantized,
    present,
    requantized,
    rounded,
    scale,
    zero,
)
from fxcompress.runtime.graphs import Array, Node
from fxcompress.runtime.windows import Windows


def global_average_pool(node: Node, inputs: Inputs) -> Array:
    """One mean for each channel."""
    x = present(inputs, 0)
    axes = tuple(range(1, x.ndim - 1)) if node.attributes.get("channels_last") else tuple(range(2, x.ndim))
    count = np.float32(np.prod([x.shape[axis] for axis in axes]))
    total = centred(x, zero(inputs, 2)).sum(axis=axes, keepdims=True)
    multiplier = scale(inputs, 1) / (scale(inputs, 3) * count)
    return requantized(total, multiplier, zero(inputs, 4), x.dtype)


def average_pool(node: Node, inputs: Inputs) -> Array:
    """Means of windows, in float32 as the kernel computes them; the order of the sum is row by row."""
    x, size = present(inputs, 0), tuple(node.attributes["kernel_shape"])
    windows = Windows.of(node, x.shape[2:], size)
    if x.shape[2:] == size and not any(map(any, windows.pads)):
        return global_average_pool(node, inputs)
    around = [(0, 0), (0, 0), *windows.pads]
    total = np.zeros((), np.float32)
    for tap in windows.taps(np.pad(dequantized(x, scale(inputs, 1), zero(inputs, 2)), around)):
        total = total + tap
    if node.attributes.get("count_include_pad"):
        count = np.asarray(np.prod(size), np.float32)
    else:
        inside = np.pad(np.ones((1, 1, *x.shape[2:]), np.float32), around)
        count = np.asarray(sum(windows.taps(inside)), np.float32)
    return rounded(total / count / scale(inputs, 3) + np.float32(zero(inputs, 4)), x.dtype)


def max_pool(node: Node, inputs: Inputs) -> Array:
    """Padding never wins: it is the smallest number."""
    x = present(inputs, 0)
    windows = Windows.of(node, x.shape[2:], node.attributes["kernel_shape"])
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    padded = np.pad(x, [(0, 0), (0, 0), *windows.pads], constant_values=lowest)
    largest: Array = np.maximum.reduce(list(windows.taps(padded)))
    return largest
