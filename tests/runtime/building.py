"""Hand-made QDQ graphs: a builder on top of ``onnx.helper``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxcompress.runtime.graphs import Array

Shape = Sequence[int | str]


class Builder:
    """Collects nodes and constants; every method returns the name of the value it adds."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, shape: Shape, name: str = "x") -> str:
        """A float graph input, declared once."""
        if name not in [value.name for value in self.inputs]:
            self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, value: Any, name: str = "") -> str:
        """An initializer."""
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(
        self, kind: str, *inputs: str, name: str = "", outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        """A node; with several outputs the name of the first."""
        made = [f"v{len(self.nodes)}" + (f".{i}" if i else "") for i in range(outputs)]
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, made, name=name, domain=domain, **attributes))
        return made[0]

    def q(self, value: str, scale: float = 0.02, zero: int = 128, dtype: Any = np.uint8) -> str:
        """QuantizeLinear."""
        return self.op("QuantizeLinear", value, self.constant(np.float32(scale)), self.constant(dtype(zero)))

    def dq(self, value: str, scale: float = 0.02, zero: int = 128, dtype: Any = np.uint8) -> str:
        """DequantizeLinear."""
        return self.op(
            "DequantizeLinear", value, self.constant(np.float32(scale)), self.constant(dtype(zero))
        )

    def qdq(self, value: str, scale: float = 0.02, zero: int = 128, dtype: Any = np.uint8) -> str:
        """A quantizer: QuantizeLinear and DequantizeLinear."""
        return self.dq(self.q(value, scale, zero, dtype), scale, zero, dtype)

    def weight(
        self, shape: Sequence[int], name: str = "layer", axis: int = 0, scale: float = 0.01
    ) -> tuple[str, Array]:
        """A dequantized int8 weight with one scale for each channel of ``axis``, and the scales."""
        scales = (self.random.uniform(0.5, 1.5, shape[axis]) * scale).astype(np.float32)
        stored = self.constant(
            self.random.integers(-127, 128, shape).astype(np.int8), f"{name}.weight_quantized"
        )
        zeros = self.constant(np.zeros(shape[axis], np.int8))
        return self.op("DequantizeLinear", stored, self.constant(scales), zeros, axis=axis), scales

    def bias(self, weight_scales: Array, input_scale: float = 0.02, name: str = "layer") -> str:
        """A dequantized int32 bias at scale ``s_x · s_w``."""
        scales = np.float32(input_scale) * weight_scales
        stored = self.constant(
            self.random.integers(-3000, 3000, scales.shape).astype(np.int32), f"{name}.bias_quantized"
        )
        zeros = self.constant(np.zeros(scales.shape, np.int32))
        return self.op("DequantizeLinear", stored, self.constant(scales), zeros, axis=0)

    def conv(
        self, value: str, channels: Sequence[int], name: str = "layer", size: int = 3, **attributes: Any
    ) -> str:
        """A convolution of dequantized values ``in -> out`` channels with int8 weights and an int32 bias."""
        weight, scales = self.weight([channels[1], channels[0], size, size], name)
        return self.op("Conv", value, weight, self.bias(scales, name=name), name=name, **attributes)

    def model(self, *outputs: str, opset: int = 18) -> onnx.ModelProto:
        """The model that returns ``outputs``."""
        graph = helper.make_graph(
            self.nodes, "g", self.inputs, [onnx.ValueInfoProto(name=name) for name in outputs], self.constants
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def save(self, path: Path, *outputs: str, opset: int = 18) -> Path:
        """Write the model that returns ``outputs``."""
        onnx.save(self.model(*outputs, opset=opset), str(path))
        return path
