"""How some ATen operators are written in ONNX where the exporter's own way misses a kernel of onnxruntime:
one for integers, or a faster one.
"""

from __future__ import annotations

import math
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


def gelu(self: Any, approximate: str = "none") -> Any:
    """``x · (1 + erf(x / √2)) · ½``, multiplied in the order in which onnxruntime takes it for one Gelu."""
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.ops import nn

    if approximate != "none":
        return nn.aten_gelu(self, approximate)
    numbers: list[Any] = [op.Constant(value_float=c) for c in (0.5, 1.0, math.sqrt(2))]
    half, one, root = (op.CastLike(number, self) for number in numbers)
    return op.Mul(op.Mul(self, op.Add(op.Erf(op.Div(self, root)), one)), half)


def layer_norm(
    self: Any,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """LayerNormalization of a tensor that has one dimension more, which moves nothing.

    With an addition in front of three dimensions onnxruntime makes one SkipLayerNormalization of the two,
    which takes 9 times as long as both (1.31, x86-64: 4.5 ms against 0.5 ms for 1024 × 384).
    """
    from onnxscript import opset18 as op
    from onnxscript.function_libs.torch_lib.ops import core

    if len(self.shape) != 3 or weight is None:
        return core.aten_layer_norm(self, normalized_shape, weight, bias, eps)
    first: Any = op.Constant(value_ints=[0])
    normal, _, _ = op.LayerNormalization(
        op.Unsqueeze(self, first), weight, bias, axis=-len(normalized_shape), epsilon=eps
    )
    return op.Squeeze(normal, first)


def matmul_nbits(
    x: Any,
    packed: Any,
    scales: Any,
    zero_points: Any,
    K: int,
    N: int,
    bits: int,
    block_size: int,
    accuracy_level: int,
) -> Any:
    """``fxcompress::matmul_nbits`` as ``com.microsoft::MatMulNBits``, whose ``accuracy_level`` 4 rounds the
    input to int8 in blocks; 0 means float arithmetic.
    """
    from onnxscript.values import Op, Opset

    operator: Any = Op(Opset("com.microsoft", 1), "MatMulNBits", _matmul_nbits_schema())
    given = (x, packed, scales) if zero_points is None else (x, packed, scales, zero_points)
    sizes = {"K": K, "N": N, "bits": bits, "block_size": block_size}
    return operator(*given, **sizes, accuracy_level=accuracy_level)


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
            for name in ("K", "N", "bits", "block_size", "accuracy_level")
        ],
    )


def dynamic_matmul(x: Any, weight: Any, scale: Any) -> Any:
    """``fxcompress::dynamic_matmul`` in the form that onnxruntime makes one ``DynamicQuantizeMatMul`` of."""
    from onnxscript import opset18 as op

    integers, step, zero_point = op.DynamicQuantizeLinear(x)
    product = op.MatMulInteger(integers, weight, zero_point)
    return op.Mul(op.Cast(product, to=1), op.Mul(step, scale))


FUSED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.gelu.default: gelu,
    torch.ops.aten.layer_norm.default: layer_norm,
}
"""For every graph: forms of which onnxruntime makes its fastest kernels."""
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
    return FUSED | integer | {target: made for target, made in KERNELS.items() if target in targets}
