"""How some ATen operators of a quantized graph are written in ONNX, where the exporter's own way has no
integer kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def mean(self: Any, dim: Sequence[int], keepdim: bool = False, dtype: int | None = None) -> Any:
    """The mean over the positions of images as GlobalAveragePool, any other as ReduceMean.

    onnxruntime fuses the former with the quantizers around it, the latter not.
    """
    from onnxscript import opset18 as op

    rank = len(self.shape)
    positions = list(range(2, rank))
    axes: Any = op.Constant(value_ints=positions)
    if rank > 2 and sorted(d % rank for d in dim) == positions:
        pooled = op.GlobalAveragePool(self)
        result = pooled if keepdim else op.Squeeze(pooled, axes)
    else:
        axes = op.Constant(value_ints=list(dim))
        result = op.ReduceMean(self, axes, keepdims=int(keepdim))
    return result if dtype in (None, -1) else op.Cast(result, to=dtype)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten.mean.dim: mean}


def translations_for(graph: torch.fx.Graph) -> dict[Any, Callable[..., Any]]:
    """``TRANSLATIONS`` for a graph with quantize nodes, none for any other."""
    spaces = {getattr(node.target, "namespace", "") for node in graph.nodes}
    return TRANSLATIONS if "quantized_decomposed" in spaces else {}
