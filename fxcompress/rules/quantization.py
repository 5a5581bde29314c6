"""Fake-quantize nodes: ``y = round(x / s + z)`` element by element, back in floats.

The axes are those of ``x``; scale, zero point and tracked range of a quantizer for every channel go with the
channels. A constant slice stays constant, at the number of the grid; zero stays zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.graph.calls import Call, Reference, operand
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _quantizer(call: Call, root: nn.Module) -> tuple[str, FakeQuantize]:
    """The quantizer and its name.

    Raises:
        ValueError: for one that rounds by other rules than a grid.
    """
    name = str(call.args["owner"])
    found = root.get_submodule(name)
    if type(found) is not FakeQuantize:
        raise ValueError(f"{type(found).__name__} rounds by rules of its own")
    return name, found


@rule("fxcompress.fake_quantize")
class FakeQuantized(Rule):
    """``ops.fake_quantize(x, quantizer)``."""

    def flow(self, call: Call, flow: Flow) -> None:
        name, quantizer = _quantizer(call, flow.root)
        x = flow.axes(operand(call))
        axis = quantizer.grid.axis
        if axis is not None:
            for buffer, tensor in quantizer._buffers.items():
                if tensor is not None and tuple(tensor.shape) == (x[axis].size,):
                    flow.axes(Reference(f"{name}.{buffer}"))[0].merge(x[axis])
        flow.set(call.node, x)

    def constants(self, call: Call, values: Values) -> None:
        _, quantizer = _quantizer(call, values.root)
        if not (quantizer.quantizing and quantizer.is_calibrated):
            return
        x = operand(call)
        known = values.known(x)
        if known is not None:
            values.set_known(call.node, self._rounded(quantizer, known))
            return
        for dim in range(len(values.map.of[call.node])):
            given = values.slices(x, dim)
            if given is not None and quantizer.grid.axis is None:
                rounded = quantizer.simulate(given.nan_to_num())
                values.set(call.node, dim, torch.where(given.isnan(), given, rounded))

    @staticmethod
    def _rounded(quantizer: FakeQuantize, value: Tensor) -> Tensor:
        with torch.no_grad():
            if quantizer.observing and quantizer.calibrating:
                quantizer.observe(value)
            return quantizer.simulate(value)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        """The scale of a weight is that of all of it: what is left keeps it."""
        _, quantizer = _quantizer(call, shrink.module)
        if shrink.values.known(operand(call)) is not None:
            quantizer.observing = False


@rule("fxcompress.round_bias")
class RoundedBias(Rule):
    """``ops.round_bias(b, weight_quantizer, input_quantizer)``: element by element, too."""

    def flow(self, call: Call, flow: Flow) -> None:
        flow.set(call.node, flow.axes(call.args["bias"]))

    def constants(self, call: Call, values: Values) -> None:
        known = values.known(call.args["bias"])
        if known is not None:
            owner, given = (values.root.get_submodule(str(call.args[n])) for n in ("owner", "input_owner"))
            with torch.no_grad():
                values.set_known(call.node, owner.round_bias(known, given))  # type: ignore[operator]
