"""Resolution: output channels that one scale for a whole weight rounds to nothing.

Channels of a weight differ in range, in depthwise convolutions with a folded BatchNorm by orders of
magnitude; with one scale for all, those whose largest weight is below half of it become 0 (Krishnamoorthi
2018, section 3.1.2; Nagel et al., ICCV 2019, section 3.1). A scale per channel, or equalization, keeps them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from fxcompress import ops
from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import constant
from fxcompress.graph.module import CompiledModule
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.passes.links import label
from fxcompress.quantization.placement import weight_argument, weight_axis


def lost_channels(module: CompiledModule, layers: Collection[fx.Node]) -> dict[str, tuple[int, int]]:
    """Layer → how many of its output channels have weights that all become 0, and how many have weights; of
    ``layers`` (calls with a rounded weight) that lose any.
    """
    found: dict[str, tuple[int, int]] = {}
    for node in layers:
        call = call_of(node)
        rounded = None if call is None else call.get(weight_argument(call) or "")
        if call is None or not isinstance(rounded, fx.Node) or rounded.target is not ops.fake_quantize:
            continue
        quantizer = module.get_submodule(str(rounded.args[1].target))  # type: ignore[union-attr]
        weight = constant(module, rounded.args[0])
        if weight is None or not isinstance(quantizer, FakeQuantize) or quantizer.grid.axis is not None:
            continue
        with torch.no_grad():
            quantizer.observe(weight)
            values = quantizer.simulate(weight)
        has, keeps = ((w.movedim(weight_axis(call), 0).flatten(1) != 0).any(1) for w in (weight, values))
        lost = int((has & ~keeps).sum())
        if lost:
            found[label(node)] = lost, int(has.sum())
    return found
