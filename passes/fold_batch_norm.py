"""Fold BatchNorm into the convolution or linear layer in front of it.

    y = bn(conv(x))   →   y = conv'(x),   w' = w · γ/√(σ² + eps),   b' = (b − μ) · γ/√(σ² + eps) + β

Law: in eval mode the result computes what the module computed. It has no running statistics left to update,
so folding comes after training (Jacob et al., Quantization and Training of Neural Networks, CVPR 2018, eq.
14). ``w`` is ``[out, …]``, the statistics ``[out]``. The module is edited in place; changed parameters
become copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.calls import Aten, Attribute, Call, Reference, call_of
from fxcompress.graph.module import CompiledModule, erase_unread, get_tensor
from fxcompress.rules.contraction import WeightedRule
from fxcompress.rules.registry import rule_for


@dataclass(frozen=True)
class Folded:
    """Names of the folded norms, and ``(norm, reason)`` for those that stayed."""

    done: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def fold_batch_norm(module: CompiledModule) -> Folded:
    """Fold every BatchNorm that directly follows the only call of an unmasked convolution or linear layer."""
    calls: dict[int, int] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        weight = None if call is None else call.get("weight")
        if isinstance(weight, Reference):
            key = id(get_tensor(module, weight))
            calls[key] = calls.get(key, 0) + 1
    done: list[str] = []
    refused: list[tuple[str, str]] = []
    for node in list(module.graph.nodes):
        norm = call_of(node)
        if norm is None or norm.op not in ("batch_norm", "fxcompress.batch_norm"):
            continue
        name = norm.module or str(node)
        source = norm.args["input"]
        layer = call_of(source) if isinstance(source, fx.Node) else None
        reason = _obstacle(module, norm, layer, calls)
        if reason is not None or layer is None:
            refused.append((name, reason or "nothing in front of it"))
            continue
        _fold(module, norm, layer)
        node.replace_all_uses_with(layer.node)
        module.graph.erase_node(node)
        done.append(name)
    erase_unread(module.graph)
    module.graph.lint()
    module.recompile()
    return Folded(tuple(done), tuple(refused))


def _obstacle(module: CompiledModule, norm: Call, layer: Call | None, calls: dict[int, int]) -> str | None:
    if norm.get("running_mean") is None:
        return "it has no running statistics"
    if layer is None or not (layer.op == "linear" or layer.op.startswith("conv")):
        return "no convolution or linear layer directly in front of it"
    if layer.module is None or not isinstance(layer.args["weight"], Reference):
        return f"the weight of {layer.node} is masked or computed"
    if len(layer.node.users) > 1:
        return f"{layer.module} is also read by others"
    if calls[id(get_tensor(module, layer.args["weight"]))] > 1:
        return f"{layer.module} is called more than once"
    if any(isinstance(norm.get(k), fx.Node) for k in ("weight", "bias")):
        return "its scale or offset is masked or computed"
    if layer.op == "linear" and len(norm.node.meta["tensor"].shape) != 2:
        return f"its channels are not those of {layer.module}"
    return None


def _fold(module: CompiledModule, norm: Call, layer: Call) -> None:
    def value(name: str, default: float) -> Tensor:
        ref = norm.get(name)
        return torch.tensor(default).double() if ref is None else get_tensor(module, ref).detach().double()

    path = layer.module or ""
    owner = module.get_submodule(path)
    weight = get_tensor(module, layer.args["weight"])
    scale = value("weight", 1.0) * torch.rsqrt(value("running_var", 1.0) + norm.args["eps"])
    bias = layer.get("bias")
    offset = torch.zeros_like(scale) if bias is None else get_tensor(module, bias).detach().double()
    offset = (offset - value("running_mean", 0.0)) * scale + value("bias", 0.0)
    rows = weight.detach().double()
    rule = rule_for(layer)
    if not isinstance(rule, WeightedRule):
        raise TypeError(f"{layer.node}: {layer.op} has no weights")
    canonical = rule.canonical(layer, rows)
    canonical = canonical * scale.view(canonical.shape[0], canonical.shape[1], 1, 1)
    rows = rule.original(layer, canonical, weight.shape)
    owner.register_parameter("weight", nn.Parameter(rows.to(weight.dtype), weight.requires_grad))
    owner.register_parameter("bias", nn.Parameter(offset.to(weight.dtype), weight.requires_grad))
    aten: Aten = layer.node.meta["aten"]
    layer.node.meta["aten"] = Aten(aten.target, {**aten.args, "bias": Attribute("bias")})
