"""DoReFa: weights of few bits through a bounded transform."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fxcompress.numerics.fake_quantize import TensorQuantizer, storable
from fxcompress.numerics.grid import Grid
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.grad import straight_through
from fxcompress.quantization.wrapper import Wrapper


@storable
class DoReFaWeight(TensorQuantizer):
    """``ŵ = 2 · round(r · n) / n − 1`` with ``r = tanh(w) / (2 · max|tanh(w)|) + ½``, ``n = 2^bits − 1``."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in ``[−1, 1]``; the gradient is that of ``2r − 1``."""
        if not self.quantizing:
            return weight
        bounded = torch.tanh(weight)
        largest = bounded.detach().abs().max().clamp(min=torch.finfo(weight.dtype).tiny)
        r, n = bounded / (2 * largest) + 0.5, 2**self.bits - 1
        return 2 * straight_through(r, torch.round(r * n) / n) - 1

    def options(self) -> dict[str, Any]:
        """The bits."""
        return {"bits": self.bits}

    @classmethod
    def restored(cls, options: Mapping[str, Any]) -> DoReFaWeight:
        """One of as many bits."""
        return cls(int(options["bits"]))

    def extra_repr(self) -> str:
        """``2-bit``."""
        return f"{self.bits}-bit"


@final
class DoReFaQuantizer(Quantizer):
    """Rounds weights to ``quant_bits`` bits in ``[−1, 1]`` (Zhou et al., DoReFa-Net, 2016, eq. 9)."""

    name = "dorefa"
    default_types = ("weight",)
    only_types = ("weight",)

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> nn.Module:
        """The transform of a weight."""
        return DoReFaWeight(grid.bits)
