"""How some ATen operators of a quantized graph are written in ONNX, where the exporter's own way has no
integer kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import fxcompress.kernels  # noqa: F401  registers the operators


def mean(self: Any, dim: Sequence[int], keepdim: bool = False, dtype: int | None = None) -> Any:
    """The mean over the positions of images as GlobalAveragePool, any other as ReduceMean.

    onnxruntime fuses the former with the quantizers around it, the latter not; it has the former for float32.
    """
    from onnxscript import ir
    from onnxscript import opset18 as op

    rank = len(self.shape)
    positions = list(range(2, rank))
    axes: Any = op.Constant(value_ints=positions)
    if rank > 2 and sorted(d % rank for d in dim) == positions and self.dtype == ir.DataType.FLOAT:
        pooled = op.GlobalAveragePool(self)
        result = pooled if keepdim else op.Squeeze(pooled, axes)
    else:
        axes = op.Constant(value_ints=list(dim))
        result = op.ReduceMean(self, axes, keepdims=int(keepdim))
    return result if dtype in (None, -1) else op.Cast(result, to=dtype)


def matmul_nbits(
    x: Any, packed: Any, scales: Any, zero_points: Any, K: int, N: int, bits: int, block_size: int
) -> Any:
    """``fxcompress::matmul_nbits`` as ``com.microsoft::MatMulNBits``.

    Its ``accuracy_level`` is left out, which means float arithmetic. Level 4 has the runtime round the input
    to int8 in blocks: 3 times as fast at one row (60 times with 8 bits), and no longer what was simulated
    (measured: 6e-3 of the largest output).
    """
    from onnxscript.values import Op, Opset

    operator: Any = Op(Opset("com.microsoft", 1), "MatMulNBits", _matmul_nbits_schema())
    given = (x, packed, scales) if zero_points is None else (x, packed, scales, zero_points)
    return operator(*given, K=K, N=N, bits=bits, block_size=block_size)


def _matmul_nbits_schema() -> Any:
    """The part of the operator's schema that is used here; onnx does not know operators of onnxruntime."""
    from onnx.defs import OpSchema

    names, kind = ("A", "B", "scales", "zero_points"), OpSchema.FormalParameterOption
    types = ("T1", "T2", "T1", "T2")
    inputs = [
        OpSchema.FormalParameter(
            name, of, param_option=kind.Optional if name == "zero_points" else kind.Single
        )
        for name, of in zip(names, types, strict=True)
    ]
    return OpSchema(
        "MatMulNBits",
        "com.microsoft",
        1,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("Y", "T1")],
        type_constraints=[("T1", ["tensor(float)"], ""), ("T2", ["tensor(uint8)"], "")],
        attributes=[
            OpSchema.Attribute(name, OpSchema.AttrType.INT, required=True)
            for name in ("K", "N", "bits", "block_size")
        ],
    )


def dynamic_matmul(x: Any, weight: Any, scale: Any) -> Any:
    """``fxcompress::dynamic_matmul`` in the form that onnxruntime makes one ``DynamicQuantizeMatMul`` of."""
    from onnxscript import opset18 as op

    integers, step, zero_point = op.DynamicQuantizeLinear(x)
    product = op.MatMulInteger(integers, weight, zero_point)
    return op.Mul(op.Cast(product, to=1), op.Mul(step, scale))


INTEGER: dict[Any, Callable[..., Any]] = {torch.ops.aten.mean.dim: mean}
"""For graphs with quantize nodes."""
KERNELS: dict[Any, Callable[..., Any]] = {
    torch.ops.fxcompress.matmul_nbits.default: matmul_nbits,
    torch.ops.fxcompress.dynamic_matmul.default: dynamic_matmul,
}
"""For ``fxcompress.kernels``, which the exporter does not know."""


def translations_for(graph: torch.fx.Graph) -> dict[Any, Callable[..., Any]]:
    """What ``graph`` needs."""
    targets = {node.target for node in graph.nodes}
    spaces = {getattr(target, "namespace", "") for target in targets}
    integer = INTEGER if "quantized_decomposed" in spaces else {}
    return integer | {target: made for target, made in KERNELS.items() if target in targets}
