"""Integers for linear layers without calibration: activations are rounded over the range they have."""

from __future__ import annotations

from dataclasses import replace
from typing import final

from fxcompress.errors import ConfigError
from fxcompress.numerics.dynamic import DYNAMIC, DynamicFakeQuantize
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.quantization.linear import LinearQuantizer
from fxcompress.quantization.wrapper import Wrapper


@final
class DynamicQuantizer(LinearQuantizer):
    """Rounds weights to signed integers of up to 8 bits per output channel, and inputs to unsigned 8 bits
    over the range of the tensor at hand in every forward pass.

    No data is needed and no range is too small; the price is a look at every input for its range. Pays for
    transformers; convolutions have no such kernel worth having. onnxruntime runs it as
    ``DynamicQuantizeMatMul``.
    """

    name = "dynamic"
    default_types = ("weight", "input")
    only_types = ("weight", "input")
    moves = False

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """Of either the range at hand.

        Raises:
            ConfigError: for integers that the kernel does not have.
        """
        wanted = "signed symmetric integers of up to 8 bits" if quant_type == "weight" else "uint8, affine"
        if quant_type == "weight":
            fits = grid.signed and grid.symmetric and grid.bits <= 8
        else:
            fits = replace(grid, axis=None) == DYNAMIC
        if not fits:
            raise ConfigError(
                f"quantizer 'dynamic': expected {wanted} for the {quant_type} of {wrapper.name!r}, got "
                f"{grid.bits} bits, {'int' if grid.signed else 'uint'}, "
                f"{'symmetric' if grid.symmetric else 'affine'}"
                f"{', power-of-two scales' if grid.power_of_two else ''}; give quant_bits, quant_dtype, "
                "quant_scheme and quant_scale for the weight alone ({'weight': ...}), or leave them out"
            )
        return FakeQuantize(grid) if quant_type == "weight" else DynamicFakeQuantize()
