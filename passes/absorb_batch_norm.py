"""Absorb BatchNorm into the convolution or linear layer in front of it, for training.

    y = bn(conv(x))    →    s = γ/√(σ² + eps);    y = conv(x, weight=w · s, bias=(b − μ) · s + β)

Law: the result computes what the module computes in eval mode, whatever its own mode: the running statistics
are used and no longer move. ``w``, ``b``, ``γ`` and ``β`` stay the module's own parameters and train on, so
what is quantized is the weight that will be deployed (Jacob et al., CVPR 2018, fig. C8, with statistics
frozen; Krishnamoorthi 2018, section 3.2.2). ``w`` is ``[out, …]``, the others ``[out]``. In place; for good,
``fold_batch_norm`` makes one parameter of each product.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from fxcompress.graph.calls import Call, TensorInfo, call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import operand_node, read_tensor, set_operand

aten = torch.ops.aten


def absorb_batch_norm(
    module: CompiledModule, layers: Collection[str] | None = None
) -> tuple[tuple[str, str], ...]:
    """Absorb every BatchNorm that directly follows a convolution or linear layer.

    Args:
        layers: names of layers (of nodes, where no module is called); all by default.

    Returns:
        ``(norm, reason)`` for those that stayed.
    """
    stayed: list[tuple[str, str]] = []
    for node in list(module.graph.nodes):
        norm = call_of(node)
        if norm is None or norm.op not in ("batch_norm", "fxcompress.batch_norm"):
            continue
        layer = call_of(norm.args["input"])
        if layers is not None and (layer is None or (layer.module or str(layer.node)) not in layers):
            continue
        reason = _obstacle(norm, layer)
        if reason is None and layer is not None:
            _absorb(module, norm, layer)
        else:
            stayed.append((norm.module or str(node), reason or "nothing in front of it"))
    module.graph.lint()
    module.recompile()
    return tuple(stayed)


def _obstacle(norm: Call, layer: Call | None) -> str | None:
    if norm.get("running_mean") is None or norm.get("running_var") is None:
        return "it has no running statistics"
    if layer is None or not (layer.op == "linear" or layer.op.startswith("conv")):
        return "no convolution or linear layer directly in front of it"
    if layer.op.startswith("conv_transpose") and layer.args["groups"] > 1:
        return f"{layer.module or layer.node} is a transposed convolution in groups"
    if len(layer.node.users) > 1:
        return f"{layer.module or layer.node} is also read by others"
    if layer.op == "linear" and len(norm.node.meta["tensor"].shape) != 2:
        return f"its channels are not those of {layer.module or layer.node}"
    return None


def _absorb(module: CompiledModule, norm: Call, layer: Call) -> None:
    graph, node = module.graph, norm.node
    moved = layer.node  # behind everything that the norm reads
    node.prepend(moved)
    weight, bias = operand_node(module, moved, "weight"), operand_node(module, moved, "bias")
    if weight is None:
        raise TypeError(f"{moved}: {layer.op} has no weight")

    def read(name: str) -> fx.Node | None:
        value = norm.get(name)
        return (
            value if value is None or isinstance(value, fx.Node) else read_tensor(module, str(value), moved)
        )

    def made(target: Any, like: fx.Node, *args: Any, shape: tuple[int, ...] | None = None) -> fx.Node:
        facts: TensorInfo = like.meta["tensor"]
        with graph.inserting_before(moved):
            new = graph.call_function(target, args)
        size = facts.shape if shape is None else shape
        new.meta["tensor"] = TensorInfo(size, facts.dtype, (False,) * len(size))
        return new

    mean, var, gamma, beta = (read(n) for n in ("running_mean", "running_var", "weight", "bias"))
    if mean is None or var is None:
        raise TypeError(f"{node}: no running statistics")
    scale = made(aten.rsqrt.default, var, made(aten.add.Scalar, var, var, norm.args["eps"]))
    if gamma is not None:
        scale = made(aten.mul.Tensor, var, scale, gamma)
    rank, at = len(weight.meta["tensor"].shape), int(layer.op.startswith("conv_transpose"))
    sizes = [-1 if d == at else 1 for d in range(rank)]
    channels = var.meta["tensor"].shape[0]
    column = made(
        aten.reshape.default, var, scale, sizes, shape=tuple(channels if s < 0 else 1 for s in sizes)
    )
    offset = made(aten.neg.default, mean, mean) if bias is None else made(aten.sub.Tensor, mean, bias, mean)
    offset = made(aten.mul.Tensor, mean, offset, scale)
    if beta is not None:
        offset = made(aten.add.Tensor, mean, offset, beta)
    set_operand(module, moved, "weight", made(aten.mul.Tensor, weight, weight, column))
    set_operand(module, moved, "bias", offset)
    node.replace_all_uses_with(moved)
    graph.erase_node(node)
