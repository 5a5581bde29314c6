"""The layers a pruner works on, seen as a matrix of filters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fxcompress.config.settings import PruningSettings
from fxcompress.errors import PassError
from fxcompress.graph.calls import Call, Reference, call_of, channel_dim
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.passes.insert_masks import mask_activation
from fxcompress.passes.propagate import propagate_constants
from fxcompress.rules.axes import Axis
from fxcompress.rules.contraction import WeightedRule
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import rule_for
from fxcompress.rules.values import Values


@dataclass(frozen=True)
class Layer:
    """A selected layer: its name, its settings, one call of it, and the axis of its output channels.

    A module with several weights (``MultiheadAttention``) is several layers, named by these. ``weight`` is
    the tensor its call reads: the parameter ``weight_name``, or one computed from parameters (weight norm,
    weight standardization), which has no name.
    """

    name: str
    settings: PruningSettings
    call: Call
    rule: WeightedRule
    weight: Tensor
    weight_name: str | None
    bias_name: str | None
    outputs: Axis

    def entries(self) -> Tensor:
        """The weight as ``[groups, output channels, input channels, taps]``."""
        return self.rule.canonical(self.call, self.weight)

    def filters(self) -> Tensor:
        """The weight as ``[output channels, weights per filter]``."""
        return self.entries().flatten(0, 1).flatten(1)

    def row_masks(self, module: CompiledModule, kept: Tensor) -> dict[str, Tensor]:
        """``masks``, the bias's too, that keep the output channels ``kept`` (``bool[outputs]``) only."""
        rows = kept.to(self.weight.dtype)
        shape = self.rule.canonical(self.call, self.weight).shape
        canonical = rows.view(shape[0], shape[1], 1, 1).expand(shape)
        masks = self.masks(module, self.rule.original(self.call, canonical, self.weight.shape))
        return masks if self.bias_name is None else {**masks, self.bias_name: rows}

    def masks(self, module: CompiledModule, mask: Tensor) -> dict[str, Tensor]:
        """Parameter masks that put ``mask`` on the weight; a computed one is masked in the graph at once."""
        if self.weight_name is not None:
            return {self.weight_name: mask}
        mask_activation(module, self.call.args[self.rule.weight], self.call.node, mask.to(self.weight.dtype))
        return {}


def find_layers(
    module: CompiledModule, flow: Flow, settings: dict[str, PruningSettings]
) -> tuple[list[Layer], dict[str, str]]:
    """The captured call of every selected layer; and, by name, why the others have none."""
    calls: dict[int, tuple[Call, WeightedRule]] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        rule = None if call is None else rule_for(call)
        if call is None or not isinstance(rule, WeightedRule):
            continue
        for parameter in flow.parameters_of(call.args[rule.weight]):
            calls.setdefault(id(get_tensor(module, parameter)), (call, rule))
    values: Values | None = None
    layers, missing = [], {}
    for name, chosen in settings.items():
        owner = module.get_submodule(name) if _has(module, name) else nn.Module()
        own = {a: calls[id(p)] for a, p in _own_parameters(owner) if id(p) in calls}
        if not own:
            missing[name] = "its weight takes no part in the captured (eval mode) forward pass"
        seen: set[fx.Node] = set()
        for attribute, (call, rule) in own.items():
            if call.node in seen:  # a weight computed from several parameters
                continue
            seen.add(call.node)
            if values is None and not isinstance(flow.behind_mask(call.args[rule.weight]), Reference):
                values = propagate_constants(module, flow)
            layer = _layer(module, flow, values, name, chosen, call, rule)
            several = len({c.node for c, _ in own.values()}) > 1
            layers.append(replace(layer, name=f"{name}.{attribute}") if several else layer)
    return layers, missing


def _own_parameters(owner: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module itself, and those that parametrizations compute its own from."""
    for name, parameter in owner.named_parameters():
        if "." not in name or name.startswith("parametrizations."):
            yield name, parameter


def _has(module: CompiledModule, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _layer(
    module: CompiledModule,
    flow: Flow,
    values: Values | None,
    name: str,
    settings: PruningSettings,
    call: Call,
    rule: WeightedRule,
) -> Layer:
    axes = flow.axes(call.node)
    source, bias = (
        flow.canonical(flow.behind_mask(ref)) if ref is not None else None
        for ref in (call.args[rule.weight], call.get(rule.bias))
    )
    weight = get_tensor(module, source) if isinstance(source, Reference) else None
    if weight is None and values is not None:
        weight = values.known(source)
    if weight is None:
        raise PassError(f"{name}: its weight is computed in a way that cannot be evaluated")
    own = {id(p): f"{name}.{a}" if name else a for a, p in module.get_submodule(name).named_parameters()}
    return Layer(
        name,
        settings,
        call,
        rule,
        weight.detach(),
        own[id(get_tensor(module, source))] if isinstance(source, Reference) else None,
        own.get(id(get_tensor(module, bias))) if isinstance(bias, Reference) else None,
        axes[channel_dim(call, len(axes))],
    )


def share(sparsity: float | None, count: int) -> int:
    """``floor(sparsity · count)``, the product taken as the decimal numbers mean it (0.29 · 100 is 29)."""
    return math.floor(round((sparsity or 0.0) * count, 9))


def keep_lowest_out(scores: Tensor, count: int) -> Tensor:
    """Boolean mask without the ``count`` lowest scores; ties go to the lower index, so results are stable."""
    kept = torch.ones(scores.shape, dtype=torch.bool)
    kept.view(-1)[torch.argsort(scores.reshape(-1), stable=True)[:count].cpu()] = False
    return kept
