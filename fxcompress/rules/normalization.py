"""Normalizations.

BatchNorm and InstanceNorm work channel by channel: ``y = (x − μ)/√(σ² + eps) · γ + β`` shares the channel
axis, and a constant channel (or γ = 0) gives a constant. LayerNorm and GroupNorm take statistics *over*
channels, so removing one changes the others: plain ones keep their axis (GroupNorm may lose whole groups),
and where pruning is meant to go through them the compiled model holds the restricted forms of
``fxcompress.ops``, whose statistics run over the kept channels; these become plain ones again when
everything pruned is gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, nonzero
from fxcompress.rules.flow import Flow, is_tensor
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _share(flow: Flow, call: Call, axis: Axis, names: tuple[str, ...]) -> None:
    for name in names:
        if is_tensor(call.get(name)):
            axis.merge(flow.axes(call.args[name])[0])


def _affine(call: Call, values: Values, normalized: Tensor) -> Tensor:
    """``normalized · γ + β``, and β where γ is zero."""
    weight, bias = values.known(call.get("weight")), values.known(call.get("bias"))
    offset = torch.zeros_like(normalized) if bias is None else bias.to(torch.float64)
    if weight is None:
        return normalized + offset
    scaled = normalized * weight.to(torch.float64) + offset
    return torch.where(weight == 0, offset, scaled)


@rule("batch_norm", "fxcompress.batch_norm", "fxcompress.standardize")
class BatchNorm(Rule):
    """``F.batch_norm`` with running statistics, dimension 1."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["input"])
        _share(flow, call, x[1], ("weight", "bias", "running_mean", "running_var"))
        if call.get("running_mean") is None:
            flow.statistics(call, [d for d in range(len(x)) if d != 1], "batch statistics run over it")
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        mean, var = values.known(call.get("running_mean")), values.known(call.get("running_var"))
        if mean is None or var is None:
            return
        given = values.slices(call.args["input"], 1)
        if given is None:
            given = torch.full((len(mean),), torch.nan, dtype=torch.float64)
        normalized = (given - mean.double()) * torch.rsqrt(var.double() + call.args["eps"])
        values.set(call.node, 1, _affine(call, values, normalized))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        if call.module is not None:
            shrink.attributes(call, {}, num_features=shrink.count(shrink.axes(call.node)[1]))
        shrink.unrestrict(call)


@rule("instance_norm")
class InstanceNorm(Rule):
    """Statistics over positions, per sample and channel."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["input"])
        _share(flow, call, x[1], ("weight", "bias", "running_mean", "running_var"))
        flow.freeze(x[2:], call, "statistics over positions")
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        given = values.slices(call.args["input"], 1)
        weight = values.known(call.get("weight"))
        if not call.args["use_input_stats"] or (given is None and weight is None):
            return
        size = values.map.of[call.node][1].size
        constant = torch.zeros(size, dtype=torch.bool) if given is None else ~given.isnan()
        normalized = torch.where(constant, 0.0, torch.nan).double()
        values.set(call.node, 1, _affine(call, values, normalized))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        if call.module is not None:
            shrink.attributes(call, {}, num_features=shrink.count(shrink.axes(call.node)[1]))


class _AffineOfNormalized(Rule):
    """Constants of LayerNorm and GroupNorm: γ = 0 gives β; a restricted norm gives 0 where pruned."""

    def affine_dims(self, call: Call, rank: int) -> range:
        raise NotImplementedError(type(self).__name__)

    def constants(self, call: Call, values: Values) -> None:
        weight, mask = values.known(call.get("weight")), values.known(call.get("mask"))
        dims = self.affine_dims(call, len(values.map.of[call.node]))
        for offset, dim in enumerate(dims):
            size = values.map.of[call.node][dim].size
            result = torch.full((size,), torch.nan, dtype=torch.float64)
            if weight is not None and len(dims) == 1 and mask is None:
                result = _affine(call, values, result)
            if mask is not None:
                gone = (mask.movedim(offset, 0).flatten(1) if mask.dim() > 1 else mask[:, None]) == 0
                result = torch.where(gone.all(1).expand(size), 0.0, result)
            values.set(call.node, dim, result)


@rule("layer_norm", "fxcompress.layer_norm")
class LayerNorm(_AffineOfNormalized):
    """Statistics over the last dimensions."""

    name = "LayerNorm"

    def affine_dims(self, call: Call, rank: int) -> range:
        return range(rank - len(call.args["normalized_shape"]), rank)

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["input"])
        dims = self.affine_dims(call, len(x))
        for name in ("weight", "bias"):
            if is_tensor(call.get(name)):
                for dim, axis in zip(dims, flow.axes(call.args[name]), strict=True):
                    if axis.size == x[dim].size:
                        x[dim].merge(axis)
        flow.statistics(call, dims, f"{self.name} statistics run over it")
        flow.set(call.node, x)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        axes = shrink.axes(call.node)
        shape = [shrink.count(axes[d]) for d in self.affine_dims(call, len(axes))]
        if call.module is None:
            shrink.set_args(call, normalized_shape=shape)
        else:
            shrink.attributes(call, {"normalized_shape": shape}, normalized_shape=tuple(shape))
        shrink.unrestrict(call)


@rule("rms_norm", "fxcompress.rms_norm")
class RMSNorm(LayerNorm):
    """The root mean square of the last dimensions; a zero slice stays zero."""

    name = "RMSNorm"

    def constants(self, call: Call, values: Values) -> None:
        super().constants(call, values)
        for dim in range(len(values.map.of[call.node])):
            zero = values.zero(call.args["input"], dim)
            if zero is not None:
                values.set(call.node, dim, torch.where(zero, 0.0, torch.nan).double())


@rule("group_norm", "fxcompress.group_norm")
class GroupNorm(_AffineOfNormalized):
    """Statistics over the channels of a group (dimension 1) and all positions."""

    def affine_dims(self, call: Call, rank: int) -> range:
        return range(1, 2)

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["input"])
        _share(flow, call, x[1], ("weight", "bias"))
        flow.freeze(x[2:], call, "statistics over positions")
        groups = Axis(call.args["num_groups"])
        inside = Axis(x[1].size // groups.size)
        flow.product(x[1], (groups, inside))
        if inside.size > 1:
            flow.statistics(call, (1,), "GroupNorm statistics run over it", frozen=inside)
        flow.remember(call.node, groups)
        flow.set(call.node, x)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        channels = shrink.count(shrink.axes(call.node)[1])
        groups = shrink.count(shrink.recall(call.node))
        shrink.attributes(call, {"num_groups": groups}, num_channels=channels, num_groups=groups)
        shrink.unrestrict(call)


def kept_by_mask(mask: Tensor, dim: int) -> np.ndarray[Any, Any]:
    """Indices along ``dim`` at which ``mask`` is not all zero."""
    flat = mask.movedim(dim, 0).reshape(mask.shape[dim], -1)
    return (flat != 0).any(1).nonzero().flatten().numpy()


@rule("_weight_norm")
class WeightNorm(Rule):
    """``v · g/‖v‖`` with a norm for each slice of one dimension (Salimans, Kingma 2016).

    Along that dimension ``g`` alone is masked: where ``v`` is zero there is nothing to divide by. Along the
    others zero slices of ``v`` add nothing to the norms.
    """

    def flow(self, call: Call, flow: Flow) -> None:
        v, g = flow.axes(call.args["v"]), flow.axes(call.args["g"])
        dim = call.args["dim"] % len(v)
        flow.reads(call.args["v"], dim)
        if g[dim].size == v[dim].size:
            v[dim].merge(g[dim])
        for d in range(len(v)):
            if d != dim:
                flow.contract(call, call.args["v"], d)
        flow.set(call.node, v)

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        return nonzero(contraction, values)
