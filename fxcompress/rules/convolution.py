"""Convolutions of any rank, plain, grouped, depthwise and transposed.

Channels: the weight of a convolution is ``[out, in/groups, *kernel]``, of a transposed one
``[in, out/groups, *kernel]``. With ``groups`` the channel axes are products ``groups × channels per group``,
so what goes is whole groups, or the same channels of every group. A depthwise convolution shares one axis.
Constants: see ``fxcompress.rules.contraction``; a constant channel stays uniform only without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.graph.calls import Call, channel_dim
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, Weighted, WeightedRule, editable
from fxcompress.rules.flow import Flow, is_tensor
from fxcompress.rules.registry import rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _transposed(call: Call) -> bool:
    return call.op.startswith("conv_transpose")


def _is_padded(call: Call) -> bool:
    padding = call.args["padding"]
    if isinstance(padding, str):
        return padding != "valid"
    return any(p != 0 for p in (padding if isinstance(padding, (list, tuple)) else (padding,)))


def _depthwise(groups: int, weight: tuple[int, ...]) -> bool:
    return groups > 1 and groups == weight[0] and weight[1] == 1


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
class Convolution(WeightedRule):
    """``y[o] = b[o] + Σ_i w[o, i] ∗ x[i]``."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(call.args["input"])
        weight = flow.axes(call.args["weight"])
        groups = call.args["groups"]
        channels = channel_dim(call, len(x))
        outer = self._channels(call, flow, x[channels], weight, groups)
        if is_tensor(call.args["bias"]):
            outer.merge(flow.axes(call.args["bias"])[0])
        flow.freeze(weight[2:], call, "kernel positions")
        flow.freeze(x[channels + 1 :], call, "positions of a convolution")
        made = flow.fresh(flow.info(call.node))
        flow.freeze(made[channels + 1 :], call, "positions of a convolution")
        flow.set(call.node, (*x[:channels], outer, *made[channels + 1 :]))

    def _channels(self, call: Call, flow: Flow, x: Axis, weight: tuple[Axis, ...], groups: int) -> Axis:
        """Relate the channel axes; returns that of the result."""
        first, second = weight[0], weight[1]
        sizes = (first.size, second.size)
        reads, makes = (0, 1) if _transposed(call) else (1, 0)
        if _depthwise(groups, sizes):
            x.merge(first)
            return first
        dim = channel_dim(call, len(flow.axes(call.args["input"])))
        if groups == 1:
            flow.reads(call.args["weight"], reads)
            x.merge(weight[reads])
            outer = weight[makes]
        else:
            group = Axis(groups)
            inside = Axis(x.size // groups)
            if second.size > 1 or _transposed(call):
                flow.reads(call.args["weight"], reads)
            if _transposed(call):
                x.merge(first)
                outer = Axis(groups * second.size)
                flow.product(outer, (group, second))
            else:
                inside = second
                outer = first
                flow.product(outer, (group, Axis(first.size // groups)))
            flow.product(x, (group, inside))
        flow.contract(call, call.args["input"], dim, outer)
        return outer

    def canonical(self, call: Call, weight: Tensor) -> Tensor:
        groups, flat = call.args.get("groups", 1), weight.flatten(2)
        split = flat.reshape(groups, -1, *flat.shape[1:])
        return split.transpose(1, 2) if _transposed(call) else split

    def original(self, call: Call, canonical: Tensor, shape: torch.Size) -> Tensor:
        split = canonical.transpose(1, 2) if _transposed(call) else canonical
        return split.flatten(0, 1).reshape(shape)

    # -- values --------------------------------------------------------------------------------------------
    def _weighted(self, call: Call, values: Values) -> Weighted | None:
        return values.once(call.node, lambda: self._make_weighted(call, values))

    def _make_weighted(self, call: Call, values: Values) -> Weighted | None:
        weight = values.known(call.args["weight"])
        if weight is None:
            return None
        rank = len(values.map.of[call.node])
        constants = values.slices(call.args["input"], channel_dim(call, rank))
        parameters = (call.args["weight"], call.args["bias"])
        uniform = not _is_padded(call) and not _transposed(call)
        return Weighted(self.canonical(call, weight), constants, uniform, editable(values, *parameters))

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        weighted = self._weighted(contraction.call, values)
        return None if weighted is None else weighted.need

    def constants(self, call: Call, values: Values) -> None:
        weight, bias = values.known(call.args["weight"]), values.known(call.args["bias"])
        if weight is None or (bias is None and call.args["bias"] is not None):
            return
        dim = channel_dim(call, len(values.map.of[call.node]))
        if _depthwise(call.args["groups"], tuple(weight.shape[:2])):
            values.set(call.node, dim, self._depthwise_constants(call, values, weight, bias, dim))
            return
        weighted = self._weighted(call, values)
        if weighted is not None:
            values.set(call.node, dim, weighted.outputs(bias))

    def _depthwise_constants(
        self, call: Call, values: Values, weight: Tensor, bias: Tensor | None, dim: int
    ) -> Tensor | None:
        given = values.slices(call.args["input"], dim)
        taps = weight.flatten(1).to(torch.float64)
        result = torch.full((weight.shape[0],), torch.nan, dtype=torch.float64)
        if given is not None:
            steady = given == 0 if _is_padded(call) or _transposed(call) else ~given.isnan()
            result = torch.where(steady, given.nan_to_num() * taps.sum(1), result)
        result = torch.where((taps == 0).all(1), 0.0, result)
        return result if bias is None else result + bias.to(torch.float64)

    # -- rewriting -----------------------------------------------------------------------------------------
    def shrink(self, call: Call, shrink: Shrink) -> None:
        weight_axes = shrink.axes(call.args["weight"])
        x = shrink.axes(call.args["input"])
        channels = x[channel_dim(call, len(x))]
        out = shrink.axes(call.node)[channel_dim(call, len(x))]
        per_group = weight_axes[1]
        groups = call.args["groups"]
        if groups > 1:
            whole = out if _transposed(call) else channels
            groups = shrink.count(whole) // shrink.count(per_group)
        inside, outside = shrink.count(channels), shrink.count(out)
        shrink.attributes(call, {"groups": groups}, in_channels=inside, out_channels=outside, groups=groups)
        self._fold(call, shrink, channels)

    def _fold(self, call: Call, shrink: Shrink, channels: Axis) -> None:
        if _depthwise(call.args["groups"], tuple(a.size for a in shrink.axes(call.args["weight"])[:2])):
            return
        weighted = self._weighted(call, shrink.values)
        if weighted is None or shrink.keeps_all(channels):
            return
        removed = ~torch.from_numpy(shrink.kept(channels))
        if weighted.uniform:
            shrink.add_to_bias(call, weighted.folded(removed))
            return
        carried = weighted.carried(removed)
        if carried is not None:
            index, added = carried
            weight = shrink.values.known(call.args["weight"])
            if weight is None:
                return
            edited = weight.to(torch.float64).clone()
            taps = added[0].reshape(-1, *weight.shape[2:])
            if _transposed(call):
                edited[index] += taps
            else:
                edited[:, index] += taps
            shrink.replace(call.args["weight"], edited.to(weight.dtype))
