"""Whether this processor adds products of u8 × s8 exactly: without VNNI pairs of them saturate at 16 bits."""

from __future__ import annotations

import functools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxcompress.runtime.optimized import open_session

_SIZE = 32


@functools.cache
def saturates() -> bool:
    """Multiply the largest numbers in onnxruntime and look at the sum: ``255 · 127 · 32`` if it is exact."""
    weight = np.full((_SIZE, _SIZE), 127, dtype=np.int8)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [_SIZE, _SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [_SIZE, _SIZE])
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = open_session(model, "a product of u8 and s8")
    (got,) = session.run(None, {"x": np.full((_SIZE, _SIZE), 255, dtype=np.uint8)})
    return bool((got != 255 * 127 * _SIZE).any())
