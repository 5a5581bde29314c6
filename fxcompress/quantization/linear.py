"""What quantizers share that work on linear layers alone."""

from __future__ import annotations

from abc import ABC
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from fxcompress.config import Selection
from fxcompress.config.settings import QuantSettings
from fxcompress.config.values import DEFAULT_BITS, DEFAULT_SCHEME
from fxcompress.errors import ConfigError
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.shapes import info
from fxcompress.numerics.blocks import BlockFakeQuantize
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.grouped import GroupFakeQuantize
from fxcompress.passes.lower_linear import PACKED_BITS
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.placement import layer_calls
from fxcompress.quantization.wrapper import Wrapper


class LinearQuantizer(Quantizer, ABC):
    """Rounds ``y = x Wᵀ + b`` with ``W`` ``[out, in]``, and refuses every other operator by name."""

    op_types = frozenset({"Linear", "MultiheadAttention"})

    def attach(self, module: CompiledModule, settings: dict[str, QuantSettings]) -> None:
        """As the base's.

        Raises:
            ConfigError: for a layer that is not linear.
        """
        calls = layer_calls(module)
        for name in settings:
            other = next((call.op for call in calls.get(name, ()) if call.op != "linear"), None)
            if other is not None:
                raise ConfigError(
                    f"quantizer {self.name!r}: expected linear layers, got {name!r} ({other}); select "
                    "'op_types': ['Linear'] in its config entry"
                )
        super().attach(module, settings)


class GroupQuantizer(LinearQuantizer, ABC):
    """Rounds weights with a scale for every ``group_size`` inputs of every output.

    Inputs are rounded as well, to 8 bits in blocks of that size whatever ``quant_bits`` says, which makes the
    products those of integers (``numerics.blocks``). They stay float where ``quant_types`` says ``weight``
    alone, and where there is no such kernel: of weights of neither 4 nor 8 bits, or in another dtype.
    """

    default_types = ("weight", "input")
    only_types = ("weight", "input")
    moves = False
    defaults: ClassVar[dict[str, Any]] = {
        "quant_bits": replace(DEFAULT_BITS, weight=4),
        "quant_scheme": replace(DEFAULT_SCHEME, weight="per_channel_affine"),
    }

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        group_size: int = 32,
        **options: Any,
    ) -> None:
        """As the base's.

        Args:
            group_size: inputs that share a scale: a power of two from 16, as ``MatMulNBits`` has them.

        Raises:
            ConfigError: for another one.
        """
        if type(group_size) is not int or group_size < 16 or group_size & (group_size - 1):
            raise ConfigError(
                f"group_size: expected a power of two of at least 16, got {group_size!r}; try 32"
            )
        super().__init__(model, config_list, optimizer, **options)
        self.group_size = group_size

    def attach(self, module: CompiledModule, settings: dict[str, QuantSettings]) -> None:
        """As the base's.

        Raises:
            ConfigError: for a layer whose input is to be rounded and its weight not.
        """
        super().attach(module, {name: self._alone(module, name, given) for name, given in settings.items()})

    def _alone(self, module: CompiledModule, name: str, given: QuantSettings) -> QuantSettings:
        """``given``, for the weight alone where no kernel rounds the input in blocks."""
        if "quant_types" in given.sources:
            if "weight" not in given.quant_types:
                raise ConfigError(
                    f"config_list[{given.sources['quant_types']}]: quant_types: expected 'weight' among them "
                    f"for quantizer {self.name!r}, got {list(given.quant_types)} (layer {name!r}); leave it "
                    "out"
                )
            return given
        calls = layer_calls(module).get(name, [])
        floats = all(facts.dtype == torch.float32 for call in calls if (facts := info(call.node)))
        if floats and self._completed(given).quant_bits["weight"] in PACKED_BITS:
            return given
        return replace(given, quant_types=("weight",), sources={**given.sources, "quant_types": -1})

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """The range at hand of every group or block."""
        if quant_type == "weight":
            return self.weight_quantizer(grid)
        return BlockFakeQuantize(self.group_size)

    def weight_quantizer(self, grid: Grid) -> GroupFakeQuantize:
        """The module that rounds a weight."""
        return GroupFakeQuantize(grid, self.group_size)
