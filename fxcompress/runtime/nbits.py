"""``MatMulNBits`` at accuracy level 4: weights of few bits times inputs in int8, both in blocks.

    y = Σ_blocks s_x s_w · Σ_k q(x)_k (Q − Z)_k      s_x = max|x| / 127,  q = rne(x · (127 / max|x|))

The products are exact, the sum over blocks is float32 in an order of the kernel's own: ``TOLERANCE`` of the
largest output is the bound (measured: 3e-7 for 256 inputs; one of them on another step would make 1e-3).
"""

from __future__ import annotations

import numpy as np
import torch

from fxcompress.kernels import dequantized
from fxcompress.numerics.blocks import rounded_in_blocks
from fxcompress.runtime.arithmetic import Inputs, optional, present
from fxcompress.runtime.graphs import Array, Node

LEVEL = 4
"""The accuracy level at which inputs are rounded."""
TOLERANCE = 1e-5
"""Of the largest output."""


def rounds_inputs(node: Node) -> bool:
    """Whether a node multiplies integers of few bits with inputs that it rounds."""
    return node.op == "MatMulNBits" and node.attributes.get("accuracy_level") == LEVEL


def matmul_nbits(node: Node, inputs: Inputs) -> Array:
    """The output, computed in float64 from the rounded operands."""
    bits, size, features = (int(node.attributes[name]) for name in ("bits", "block_size", "K"))
    x = rounded_in_blocks(torch.from_numpy(present(inputs, 0)), size)
    packed, scales = (torch.from_numpy(present(inputs, i).copy()) for i in (1, 2))
    rows = int(node.attributes["N"])
    zeros, bias = optional(inputs, 3), optional(inputs, 5)
    weight = dequantized(
        packed,
        scales.reshape(rows, -1).double(),
        None if zeros is None else torch.from_numpy(zeros.copy()).reshape(rows, -1),
        features,
        bits,
    )
    result: Array = (x.double() @ weight.T).numpy()
    return result if bias is None else result + bias


def differing(result: Array, runtime: Array) -> Array:
    """Where the runtime is further off than sums in another order are."""
    wrong: Array = np.abs(result - runtime) > TOLERANCE * np.abs(result).max(initial=0)
    return wrong
