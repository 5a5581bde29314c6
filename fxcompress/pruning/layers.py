"""The layers a pruner works on, seen as a matrix of filters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.config.settings import PruningSettings
from fxcompress.graph.calls import Call, Reference, call_of, channel_dim
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.rules.axes import Axis
from fxcompress.rules.convolution import grouped, ungrouped
from fxcompress.rules.flow import Flow


@dataclass(frozen=True)
class Layer:
    """A selected layer: its name, its settings, one call of it, and the axis of its output channels."""

    name: str
    settings: PruningSettings
    call: Call
    weight_name: str
    bias_name: str | None
    outputs: Axis
    weight_count: int

    def weight(self, module: CompiledModule) -> Tensor:
        """The unmasked weight."""
        return get_tensor(module, self.weight_name).detach()

    def filters(self, module: CompiledModule) -> Tensor:
        """The weight as ``[output channels, weights per filter]``."""
        weight = self.weight(module)
        if self.call.op == "linear":
            return weight
        return grouped(weight, self.call).flatten(0, 1).flatten(1)

    def row_masks(self, module: CompiledModule, kept: Tensor) -> dict[str, Tensor]:
        """Parameter masks that keep the output channels ``kept`` (bool ``[output channels]``) only."""
        weight = self.weight(module)
        rows = kept.to(weight.dtype)
        if self.call.op == "linear":
            masks = {self.weight_name: rows[:, None].expand(weight.shape)}
        else:
            shape = grouped(weight, self.call).shape
            canonical = rows.view(shape[0], shape[1], 1, 1).expand(shape)
            masks = {self.weight_name: ungrouped(canonical, self.call, weight.shape)}
        if self.bias_name is not None:
            masks[self.bias_name] = rows
        return masks


def find_layers(
    module: CompiledModule, flow: Flow, settings: dict[str, PruningSettings]
) -> tuple[list[Layer], dict[str, str]]:
    """The captured call of every selected layer; and, by name, why the others have none."""
    calls: dict[int, Call] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        weight = None if call is None else call.get("weight")
        if call is not None and isinstance(weight, Reference) and _is_weighted(call):
            calls.setdefault(id(get_tensor(module, weight)), call)
    layers, missing = [], {}
    for name, chosen in settings.items():
        owner = module.get_submodule(name) if _has(module, name) else None
        weight = None if owner is None else owner._parameters.get("weight")
        call = calls.get(id(weight))
        if call is None:
            missing[name] = "its weight takes no part in the captured (eval mode) forward pass"
            continue
        layers.append(_layer(module, flow, name, chosen, call))
    return layers, missing


def _has(module: CompiledModule, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _is_weighted(call: Call) -> bool:
    return call.op == "linear" or (call.op.startswith("conv") and call.op[-1] == "d")


def _layer(module: CompiledModule, flow: Flow, name: str, settings: PruningSettings, call: Call) -> Layer:
    axes = flow.axes(call.node)
    channels = axes[channel_dim(call, len(axes))]
    bias = call.get("bias")
    prefix = f"{name}." if name else ""
    count = get_tensor(module, f"{prefix}weight").numel()
    has_bias = isinstance(bias, Reference) and module.get_submodule(name)._parameters.get("bias") is not None
    return Layer(
        name, settings, call, f"{prefix}weight", f"{prefix}bias" if has_bias else None, channels, count
    )


def keep_lowest_out(scores: Tensor, count: int) -> Tensor:
    """Boolean mask without the ``count`` lowest scores; ties go to the lower index, so results are stable."""
    kept = torch.ones(scores.shape, dtype=torch.bool)
    kept.view(-1)[torch.argsort(scores.reshape(-1), stable=True)[:count]] = False
    return kept
