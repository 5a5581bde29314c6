"""The integer reference interpreter: what onnxruntime's integer kernels compute, in exact arithmetic.

    optimized graph, feeds  →  every value of the graph

Each integer kernel is written out from its formula (``products``, ``pooling``, ``pointwise``, ``movement``)
and equals onnxruntime bit by bit on x86-64 with AVX2 and VNNI. Operators in float are run by onnxruntime, one
node at a time. On processors without VNNI u8 × s8 products saturate at 16 bits and convolutions may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fxcompress.errors import ExportError
from fxcompress.runtime import dynamic, movement, pointwise, pooling, products
from fxcompress.runtime.arithmetic import Inputs, present
from fxcompress.runtime.graphs import Array, Graph, Node
from fxcompress.runtime.single import run_node

Kernel = Callable[[Node, Inputs], Array]

KERNELS: Mapping[str, Kernel] = {
    "QLinearConv": products.qlinear_conv,
    "QGemm": products.qgemm,
    "QLinearMatMul": products.qlinear_matmul,
    "MatMulIntegerToFloat": products.matmul_integer_to_float,
    "DynamicQuantizeMatMul": dynamic.dynamic_quantize_matmul,
    "QLinearAdd": pointwise.qlinear_add,
    "QLinearMul": pointwise.qlinear_mul,
    "QLinearConcat": pointwise.qlinear_concat,
    "QLinearSigmoid": pointwise.qlinear_sigmoid,
    "QLinearLeakyRelu": pointwise.qlinear_leaky_relu,
    "QLinearWhere": pointwise.qlinear_where,
    "QLinearSoftmax": pointwise.qlinear_softmax,
    "QLinearGlobalAveragePool": pooling.global_average_pool,
    "QLinearAveragePool": pooling.average_pool,
}
"""Operators that exist for integers only."""

QUANTIZERS: Mapping[str, Kernel] = {
    "QuantizeLinear": movement.quantize_linear,
    "DequantizeLinear": movement.dequantize_linear,
}

MOVERS = frozenset(
    ("ArgMax", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "MaxPool")
    + ("Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze")
    + ("Tile", "Transpose", "Unsqueeze")
)
"""Standard operators without arithmetic: on integers as on floats they hand on what they get."""

_BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def has_reference(node: Node, inputs: Inputs) -> bool:
    """Whether the interpreter computes ``node`` itself. Resize takes no means only on 8 bits."""
    if node.op in KERNELS or node.op in QUANTIZERS:
        return True
    if node.op == "MaxPool":
        return _pools_maxima(node)
    return node.op in MOVERS and (node.op != "Resize" or present(inputs, 0).dtype in _BYTES)


def _pools_maxima(node: Node) -> bool:
    """Whether it is a MaxPool that does not tell where the maxima were."""
    return node.op == "MaxPool" and sum(map(bool, node.outputs)) == 1


@dataclass(frozen=True)
class Interpreter:
    """Runs ``graph``, the optimized graph of a file."""

    graph: Graph

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every computed value by its name, each node fed with what the nodes before it gave.

        Raises:
            ExportError: if an input is missing, or onnxruntime cannot run an operator in float.
        """
        missing = [name for name in self.graph.inputs if name not in feeds]
        if missing:
            raise ExportError(f"inputs missing: {', '.join(missing)}; got {', '.join(feeds) or 'none'}")
        values: dict[str, Array] = dict(feeds)
        for node in self.graph.nodes:
            values.update(self.step(node, values))
        return {name: value for name, value in values.items() if name in self.graph.producers}

    def step(self, node: Node, values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs of ``node`` by name; its inputs are taken from ``values`` and the constants."""
        inputs = self.inputs_of(node, values)
        names = [name for name in node.outputs if name]
        if node.op in KERNELS or node.op in QUANTIZERS:
            kernel = KERNELS.get(node.op) or QUANTIZERS[node.op]
            return {names[0]: kernel(node, inputs)}
        if _pools_maxima(node):
            return {names[0]: pooling.max_pool(node, inputs)}
        if has_reference(node, inputs):
            return dict(zip(names, movement.moved(node, inputs, self.graph.opsets[""]), strict=True))
        results = run_node(node.proto, values, self.graph.constants, self.graph.opsets)
        return dict(zip(names, results, strict=True))

    def inputs_of(self, node: Node, values: Mapping[str, Array]) -> list[Array | None]:
        """What ``node`` reads, ``None`` for inputs left out."""
        return [self._value(name, values) if name else None for name in node.inputs]

    def _value(self, name: str, values: Mapping[str, Array]) -> Array:
        return self.graph.constants[name] if name in self.graph.constants else values[name]
