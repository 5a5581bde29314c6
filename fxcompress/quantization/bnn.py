"""Binarized networks: one bit for every weight and activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fxcompress.numerics.fake_quantize import TensorQuantizer, storable
from fxcompress.numerics.grid import Grid
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.wrapper import Wrapper


class Sign(torch.autograd.Function):
    """``x̂ = 1`` where ``x ≥ 0``, else −1; the gradient passes where ``|x| ≤ 1`` (Courbariaux 2016, eq. 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """−1 and 1."""
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """The clipped straight-through gradient."""
        (x,) = ctx.saved_tensors
        return grad_outputs[0] * (x.abs() <= 1)


@storable
class Binarize(TensorQuantizer):
    """The sign of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """−1 and 1, of the dtype of ``x``."""
        return Sign.apply(x) if self.quantizing else x  # type: ignore[no-untyped-call]

    def options(self) -> dict[str, Any]:
        """None."""
        return {}

    @classmethod
    def restored(cls, options: Mapping[str, Any]) -> Binarize:
        """Another one."""
        return cls()


@final
class BNNQuantizer(Quantizer):
    """Weights and outputs become −1 or 1 (Courbariaux et al., Binarized Neural Networks, 2016).

    Rounded are the weights, and the outputs behind an activation that follows, such as Hardtanh; name the
    layers: the first and the last one are best left out.
    """

    name = "bnn"
    default_types = ("weight",)
    only_types = ("weight", "output")

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> nn.Module:
        """The sign."""
        return Binarize()
