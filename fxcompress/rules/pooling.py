"""Pooling, interpolation, padding and pixel shuffles: positions change, channels pass through.

A constant channel stays constant under max pooling, averaging and interpolation; not under average pooling
that counts its zero padding, and not under padding with another value.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fxcompress.graph.calls import Call, TensorInfo, operand
from fxcompress.rules.axes import Axis
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import Rule, register, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _pass_positions(call: Call, flow: Flow, spatial: int) -> tuple[Axis, ...] | None:
    """Axes of a result whose last ``spatial`` dimensions are new positions."""
    x = flow.axes(operand(call))
    lead = len(x) - spatial
    flow.freeze(x[lead:], call, "positions")
    value = call.node.meta["tensor"]
    first = value if isinstance(value, TensorInfo) else value[0]
    made = flow.fresh(first)
    flow.freeze(made[lead:], call, "positions")
    return (*x[:lead], *made[lead:])


class Pool(Rule):
    """Operators over the last N dimensions, N being the digit in the name."""

    def flow(self, call: Call, flow: Flow) -> None:
        digit = re.search(r"(\d)d", call.op)
        axes = _pass_positions(call, flow, int(digit.group(1)) if digit else 2)
        if axes is None:
            return
        if isinstance(call.node.meta["tensor"], tuple):
            flow.set_several(call.node, [axes] * len(call.node.meta["tensor"]))
        else:
            flow.set(call.node, axes)

    def constants(self, call: Call, values: Values) -> None:
        source = operand(call)
        digit = re.search(r"(\d)d", call.op)
        lead = len(values.map.of[values.canonical(source)]) - (int(digit.group(1)) if digit else 2)
        index = 0 if isinstance(call.node.meta["tensor"], tuple) else None
        for dim in range(lead):
            given = values.slices(source, dim)
            if given is not None:
                values.set(call.node, dim, self.pooled(call, given), index)

    def pooled(self, call: Call, given: Tensor) -> Tensor:
        """A constant slice after pooling."""
        return given


class AveragePool(Pool):
    """Average pooling may count its zero padding, or divide by another number."""

    def pooled(self, call: Call, given: Tensor) -> Tensor:
        padding = call.args["padding"]
        padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
        counts = padded and call.args["count_include_pad"]
        if counts or call.get("divisor_override") is not None:
            return torch.where(given == 0, 0.0, torch.nan)
        return given


for _rank in (1, 2, 3):
    for _op in ("max_pool{}d", "max_pool{}d_with_indices", "adaptive_avg_pool{}d", "adaptive_max_pool{}d"):
        register(_op.format(_rank), Pool())
    register(f"avg_pool{_rank}d", AveragePool())
    register(f"upsample_nearest{_rank}d", Pool())
    register(f"_upsample_nearest_exact{_rank}d", Pool())
for _op in ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"):
    register(_op, Pool())
register("_upsample_bilinear2d_aa", Pool())
register("_upsample_bicubic2d_aa", Pool())


def _pairs(call: Call) -> list[tuple[int, int]]:
    """Padding per dimension, last dimension first."""
    flat = call.args["pad"]
    return list(zip(flat[::2], flat[1::2], strict=True))


@rule("pad", "constant_pad_nd")
class Pad(Rule):
    """Padding. On a dimension that loses slices it must be constant padding: the new slices are constants."""

    def _mode(self, call: Call) -> str:
        return str(call.get("mode", "constant"))

    def flow(self, call: Call, flow: Flow) -> None:
        if not all(isinstance(p, int) for pair in _pairs(call) for p in pair):
            flow.freeze_call(call, "padding computed from sizes")
            return
        x = flow.axes(operand(call))
        made = list(x)
        fresh = flow.fresh(flow.info(call.node))
        for back, (left, right) in enumerate(_pairs(call)):
            dim = len(x) - 1 - back
            if left == right == 0:
                continue
            made[dim] = fresh[dim]
            size = x[dim].size
            if self._mode(call) == "constant" and left >= 0 and right >= 0 and not x[dim].dynamic:
                flow.link(made[dim], range(left, left + size), x[dim], range(size))
            else:
                flow.freeze((x[dim], made[dim]), call, "padding of positions")
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        source = operand(call)
        rank = len(values.map.of[call.node])
        pairs = _pairs(call)
        amount = {rank - 1 - back: pair for back, pair in enumerate(pairs) if any(pair)}
        fill = float(call.get("value") or 0.0)
        for dim in range(rank):
            given = values.slices(source, dim)
            if dim in amount and self._mode(call) == "constant":
                size = values.map.of[values.canonical(source)][dim].size
                inner = torch.full((size,), torch.nan, dtype=torch.float64) if given is None else given
                given = torch.nn.functional.pad(inner, amount[dim], value=fill)
            elif dim in amount:
                continue
            if given is not None and any(d != dim for d in amount) and self._mode(call) == "constant":
                given = torch.where(given == fill, given, torch.nan)
            values.set(call.node, dim, given)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        before, after = shrink.axes(operand(call)), shrink.axes(call.node)
        flat: list[int] = []
        for back, (left, right) in enumerate(_pairs(call)):
            dim = len(before) - 1 - back
            if left == right == 0 or before[dim] is after[dim] or left < 0 or right < 0:
                flat += [left, right]
                continue
            kept = shrink.kept(after[dim])
            flat += [int(kept[:left].sum()), int(kept[len(kept) - right :].sum()) if right else 0]
        name = "pad" if "pad" in call.args else "padding"
        if list(call.args[name]) != flat:
            shrink.again = True
            shrink.set_args(call, **{name: flat})


class SubPositions(Rule):
    """Positions become channels or the reverse: ``[C, …] ↔ [C·k, …]``, and channel ``c`` goes with all its
    ``k``.

    ``widens``: the result is the side with ``C·k`` channels. ``before`` and ``after`` are the channel
    dimensions of operand and result, counted from the end. ``adds``: positions are padded or added up, so
    only zero stays uniform.
    """

    def __init__(self, *, widens: bool, before: int, after: int, adds: bool) -> None:
        self._widens = widens
        self._before = before
        self._after = after
        self._adds = adds

    def flow(self, call: Call, flow: Flow) -> None:
        x, made = flow.axes(operand(call)), flow.fresh(flow.info(call.node))
        flow.freeze((*x[self._before + 1 :], *made[self._after + 1 :]), call, "positions")
        narrow, wide = x[self._before], made[self._after]
        if not self._widens:
            narrow, wide = wide, narrow
        inside = Axis(wide.size // narrow.size)
        flow.freeze(inside, call, "positions of one channel")
        flow.product(wide, (narrow, inside))
        flow.set(call.node, (*x[: self._before], *made[self._after :]))

    def constants(self, call: Call, values: Values) -> None:
        before, after = values.map.of[values.canonical(operand(call))], values.map.of[call.node]
        given = values.slices(operand(call), len(before) + self._before)
        if given is None:
            return
        size = after[self._after].size
        if self._widens:
            result = given.repeat_interleave(size // len(given))
        else:
            rows = given.view(size, -1)
            result = torch.where((rows == rows[:, :1]).all(1), rows[:, 0], torch.nan)
        if self._adds:
            result = torch.where(result == 0, 0.0, torch.nan)
        values.set(call.node, len(after) + self._after, result)


register("pixel_shuffle", SubPositions(widens=False, before=-3, after=-3, adds=False))
register("pixel_unshuffle", SubPositions(widens=True, before=-3, after=-3, adds=False))
register("im2col", SubPositions(widens=True, before=-3, after=-2, adds=True))
register("col2im", SubPositions(widens=False, before=-2, after=-3, adds=True))


@rule("channel_shuffle", "native_channel_shuffle")
class ChannelShuffle(Rule):
    """``[g·k] → [k·g]`` on dimension 1."""

    def flow(self, call: Call, flow: Flow) -> None:
        x = flow.axes(operand(call))
        groups = Axis(call.args["groups"])
        inside = Axis(x[1].size // groups.size)
        made = list(x)
        made[1] = Axis(x[1].size)
        flow.product(x[1], (groups, inside))
        flow.product(made[1], (inside, groups))
        flow.remember(call.node, groups)
        flow.set(call.node, made)

    def constants(self, call: Call, values: Values) -> None:
        given = values.slices(operand(call), 1)
        if given is not None:
            values.set(call.node, 1, given.view(call.args["groups"], -1).t().reshape(-1))

    def shrink(self, call: Call, shrink: Shrink) -> None:
        shrink.set_args(call, groups=shrink.count(shrink.recall(call.node)))


@rule("grid_sampler")
class GridSample(Rule):
    """``[N, C, *] → [N, C, *]`` at positions given by a grid; channels pass through."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, grid = flow.axes(operand(call)), flow.axes(call.args["grid"])
        made = flow.fresh(flow.info(call.node))
        flow.freeze((*x[2:], *grid, *made[2:]), call, "positions")
        flow.set(call.node, (*x[:2], *made[2:]))
