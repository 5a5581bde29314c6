"""QuantizeLinear and DequantizeLinear, and standard operators that move integers without computing."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fxcompress.runtime.arithmetic import Inputs, dequantized, optional, present, quantized
from fxcompress.runtime.graphs import Array, Node


def _along(values: Array | None, node: Node, x: Array) -> Array:
    """A scale or zero point as it broadcasts over ``x``: one number, or one for each place of ``axis``."""
    if values is None:
        return np.zeros((), np.uint8)
    if values.size == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[node.attributes.get("axis", 1)] = values.size
    return values.reshape(shape)


def quantize_linear(node: Node, inputs: Inputs) -> Array:
    """float32 to integers."""
    x, zeros = present(inputs, 0), _along(optional(inputs, 2), node, present(inputs, 0))
    return quantized(x, _along(inputs[1], node, x), zeros, zeros.dtype)


def dequantize_linear(node: Node, inputs: Inputs) -> Array:
    """Integers to float32."""
    x = present(inputs, 0)
    return dequantized(x, _along(inputs[1], node, x), _along(optional(inputs, 2), node, x))


def moved(node: Node, inputs: Inputs, opset: int) -> tuple[Array, ...]:
    """The outputs of a standard operator that moves numbers, by the reference implementation of ONNX."""
    if node.op == "GatherElements":
        return (_gathered(node, present(inputs, 0), present(inputs, 1)),)
    if node.op == "Pad":
        inputs = _cropped(inputs)
    named = {name: value for name, value in zip(node.inputs, inputs, strict=True) if value is not None}
    opsets = [helper.make_opsetid("", opset)]
    known = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for name, v in named.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.outputs if name]
    model = helper.make_model(helper.make_graph([node.proto], "node", known, results), opset_imports=opsets)
    return tuple(np.asarray(value) for value in ReferenceEvaluator(model).run(None, named))


def _gathered(node: Node, x: Array, index: Array) -> Array:
    """GatherElements; the reference implementation wants ``index`` as large as ``x`` in other dimensions."""
    axis = node.attributes.get("axis", 0) % x.ndim
    part = tuple(slice(None) if d == axis else slice(size) for d, size in enumerate(index.shape))
    return np.take_along_axis(x[part], index % x.shape[axis], axis)


def _cropped(inputs: Inputs) -> Inputs:
    """The inputs of Pad with negative pads cut off, which the reference implementation does not know."""
    x, pads, *rest = present(inputs, 0), present(inputs, 1), *inputs[2:]
    axes = optional(inputs, 3)
    cut = [slice(None)] * x.ndim
    first, last = np.split(np.minimum(pads, 0), 2)
    for axis, low, high in zip(range(x.ndim) if axes is None else axes, first, last, strict=True):
        cut[axis] = slice(-low, x.shape[axis] + high)
    return (x[tuple(cut)], np.maximum(pads, 0), *rest)
