"""Bias correction: the mean error that rounding gives an output channel is taken off again by the bias.

    b_o ← b_o + E[y_o] − E[ŷ_o]

``y`` is what the layer yields in the float model, ``ŷ`` what it yields with its inputs and its weight
rounded, both in front of the activation; means are over batch and positions. Layers are corrected in order
of execution, so that ``ŷ`` is measured behind layers that are corrected already (Nagel et al., Data-Free
Quantization through Weight Equalization and Bias Correction, ICCV 2019, section 4.2 and appendix D).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.calls import Call, TensorInfo, call_of, channel_dim
from fxcompress.graph.constants import Reading, constant, is_masked
from fxcompress.graph.module import CompiledModule, erase_dead
from fxcompress.passes.links import label, weighted
from fxcompress.passes.own import own
from fxcompress.quantization.layerwise import walk
from fxcompress.quantization.outcome import Outcome


def correct_biases(module: CompiledModule, layers: Collection[fx.Node], data: Iterable[Any]) -> Outcome:
    """Correct the biases of ``layers`` (calls with a rounded weight) of ``module``, which is in eval mode; a
    layer without a bias gets one.
    """
    biases, changed, refused = _own_biases(module, layers)
    for layer in walk(module, data, biases):
        rounded, floats = (_means(layer.node, values) for values in (layer.rounded, layer.floats))
        bias = biases[layer.node]
        with torch.no_grad():
            bias.add_((floats - rounded).to(bias.dtype))
    return Outcome(tuple(map(label, biases)), refused, changed)


def _own_biases(
    module: CompiledModule, layers: Collection[fx.Node]
) -> tuple[dict[fx.Node, Tensor], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """A bias of its own for each layer; names of the new parameters; layers that can have none, and why."""
    reading = Reading(module)
    biases: dict[fx.Node, Tensor] = {}
    changed: list[str] = []
    refused: list[tuple[str, str]] = []
    for node in layers:
        found = weighted(node)
        if found is None:
            refused.append((label(node), "its operator adds no bias"))
            continue
        call, rule = found
        reason = _obstacle(module, node, call.get(rule.bias), reading)
        if reason is not None:
            refused.append((label(node), reason))
            continue
        value = constant(module, call.get(rule.bias))
        name = own(module, node, rule.bias, _zeros(module, call) if value is None else value.clone())
        biases[node] = module.get_parameter(name)
        changed.append(name)
    erase_dead(module.graph)
    module.graph.lint()
    module.recompile()
    return biases, tuple(changed), tuple(refused)


def _obstacle(module: CompiledModule, node: fx.Node, bias: Any, reading: Reading) -> str | None:
    if is_masked(bias):
        return "its bias is masked: speed the model up first"
    value = constant(module, bias)
    if bias is not None and (value is None or value.dim() != 1):
        return "its bias is computed"
    return "it, or its bias, is shared with other calls" if reading.is_shared(bias, node) else None


def _zeros(module: CompiledModule, call: Call) -> Tensor:
    facts: TensorInfo = call.node.meta["tensor"]
    device = next((p.device for p in module.parameters()), None)
    return torch.zeros(facts.shape[channel_dim(call, len(facts.shape))], dtype=facts.dtype, device=device)


def _means(node: fx.Node, values: Iterable[Tensor]) -> Tensor:
    """The mean of each output channel over all batches, float64."""
    call = call_of(node)
    sums, count = torch.zeros(()), 0
    for value in values:
        rows = value.movedim(channel_dim(call, value.dim()), 0).flatten(1)  # type: ignore[arg-type]
        sums, count = sums.to(rows.device) + rows.double().sum(1), count + rows.shape[1]
    return sums / count
