"""Large convolutions of an integer graph by onnxruntime's matrix product, which uses AMX.

onnxruntime has two integer kernels for a convolution: one of its own, on VNNI, and the matrix product over
copied patches, which alone runs on the tiles of AMX. It takes its own wherever the weights' zero point is 0.
Symmetric weights lie in [−127, 127]: one less with a zero point of −1 are the same numbers in the same
integer arithmetic, by the matrix product.

onnxruntime 1.31, an x86-64 with AMX, a convolution alone: 1.0 to 2.2 times as fast as on VNNI with 256
products or more an output, from 64 channels on where the kernel is larger than 1 × 1. Smaller ones are slower
by it, as all may be on a processor without AMX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fxcompress.export.integers import dequantized_weight, hold

_FEWEST_PRODUCTS = 256
_FEWEST_CHANNELS = 64
"""Of the output, where patches overlap and are copied."""
_ZERO_POINT = -1


def has_amx() -> bool:
    """Whether this processor multiplies tiles of int8."""
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return False
    return bool(torch.cpu.get_capabilities().get("amx_int8", False))


def prefer_amx(model: Any) -> int:
    """Give the weights of large convolutions of ``model``, an ``onnxscript.ir.Model``, a zero point of −1.

    Returns:
        How many there are.
    """
    from onnxscript import ir

    found = 0
    for node in model.graph:
        dequantize = dequantized_weight(node)
        if dequantize is None:
            continue
        weight, scale = dequantize.inputs[:2]
        integers = weight.const_value.numpy()
        if not _is_large(integers) or integers.min() == np.iinfo(np.int8).min:
            continue
        weight.const_value = ir.tensor(integers + np.int8(_ZERO_POINT), name=weight.name)
        points = np.full(tuple(scale.const_value.shape), _ZERO_POINT, np.int8)
        dequantize.resize_inputs(3)
        dequantize.replace_input_with(2, hold(model.graph, f"{weight.name}_zero_point", points))
        found += 1
    return found


def _is_large(weight: Any) -> bool:
    """``[out, in, *kernel]``."""
    out, *window = weight.shape
    is_product = max(window[1:], default=1) == 1
    return bool(np.prod(window) >= _FEWEST_PRODUCTS and (is_product or out >= _FEWEST_CHANNELS))
