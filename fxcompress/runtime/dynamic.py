"""Products with an input whose range is found as the model runs: DynamicQuantizeLinear and MatMulInteger.

DynamicQuantizeLinear → MatMulInteger → Cast → Mul(s_x · s_w) (→ Add)      in the file
DynamicQuantizeMatMul, or MatMulIntegerToFloat where several read one input     in the optimized graph

s = f32((max(0, max x) − min(0, min x)) / 255),   z = rne(clamp(−min(0, min x) / s, 0, 255))
y = f32(Σ (q(x) − z)(w − z_w)) · f32(s · s_w) (+ float bias)
"""

from __future__ import annotations

import numpy as np

from fxcompress.runtime.arithmetic import Inputs, centred, optional, present, quantized
from fxcompress.runtime.graphs import Array, Graph, Node


def dynamic_quantize_matmul(node: Node, inputs: Inputs) -> Array:
    """Batched ``A B``, ``A`` quantized over its own range; scales of ``B`` for the tensor or each column."""
    x, weight, zeros = present(inputs, 0), present(inputs, 1), optional(inputs, 3)
    low, high = np.float32(min(x.min(initial=0), 0)), np.float32(max(x.max(initial=0), 0))
    step = (high - low) / np.float32(255) if high > low else np.float32(1)
    zero = int(np.rint(np.clip(-low / step, 0, 255)))
    values = centred(quantized(x, step, zero, np.dtype(np.uint8)), zero)
    products = values @ centred(weight, 0 if zeros is None else zeros)
    result: Array = products.astype(np.float32) * (step * present(inputs, 2).astype(np.float32))
    bias = optional(inputs, 4)
    return result if bias is None else result + bias


def scaled(node: Node, graph: Graph) -> Node | None:
    """The MatMulInteger whose integers ``node`` (Cast, Mul) brings to scale."""
    if node.op not in ("Cast", "Mul"):
        return None
    for source in graph.sources(node):
        found = source if source.op == "MatMulInteger" else scaled(source, graph)
        if found is not None and (source.op == "Cast") == (node.op == "Mul"):
            return found
    return None


def scales(node: Node, graph: Graph) -> bool:
    """Whether ``node`` multiplies the scale of a dynamically quantized tensor with that of a weight."""
    sources = list(graph.sources(node))
    return node.op == "Mul" and len(sources) == 1 and sources[0].op == "DynamicQuantizeLinear"
