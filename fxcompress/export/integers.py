"""What the rewrites of an integer ONNX graph share; graphs are those of ``onnxscript.ir``."""

from __future__ import annotations

from typing import Any

import numpy as np


def dequantized_weight(node: Any) -> Any:
    """The DequantizeLinear of a convolution's weight: int8 numbers of its own and no zero point; the
    convolution has one group. ``None`` for any other node.
    """
    if node.op_type != "Conv" or node.domain or node.attributes["group"].as_int() != 1:
        return None
    dequantize = node.inputs[1].producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    weight, _, *zeros = dequantize.inputs
    if weight.const_value is None or len(weight.uses()) > 1 or weight.const_value.numpy().dtype != np.int8:
        return None
    return None if any(zero.const_value.numpy().any() for zero in zeros) else dequantize


def hold(graph: Any, name: str, numbers: Any) -> Any:
    """A new initializer of ``graph``."""
    from onnxscript import ir

    value = ir.val(name, const_value=ir.tensor(numbers, name=name))
    graph.register_initializer(value)
    return value
