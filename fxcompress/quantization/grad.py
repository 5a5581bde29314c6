"""Gradients of one's own for what a quantizer's methods round, as in the seeds' API."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch
from torch import Tensor


class QuantType(str, Enum):
    """Which tensor of a layer is rounded."""

    QUANT_WEIGHT = "weight"
    QUANT_INPUT = "input"
    QUANT_OUTPUT = "output"


class QuantGrad:
    """Straight-through: the gradient of what is rounded is that of what rounding gave (Bengio et al. 2013).

    A subclass overrides ``quant_backward`` and is set as ``self.quant_grad`` of a quantizer.
    """

    @staticmethod
    def quant_backward(tensor: Tensor, grad_output: Tensor, quant_type: QuantType) -> Tensor:
        """The gradient with respect to ``tensor``.

        Args:
            tensor: what was rounded.
            grad_output: the gradient with respect to the rounded tensor, of the same shape; may be changed.
            quant_type: which tensor of the layer it is.
        """
        return grad_output


class Rounding(torch.autograd.Function):
    """``rounded`` forwards, ``grad.quant_backward`` backwards."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rounded: Tensor, grad: type[QuantGrad], kind: QuantType) -> Tensor:
        """Return ``rounded``."""
        ctx.save_for_backward(tensor)
        ctx.grad, ctx.kind = grad, kind
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:
        """The gradient of ``tensor``."""
        (tensor,) = ctx.saved_tensors
        return ctx.grad.quant_backward(tensor, grad_outputs[0].clone(), ctx.kind), None, None, None


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """``rounded``, bit for bit, with the gradient of ``x``."""
    return Rounding.apply(x, rounded.detach(), QuantGrad, QuantType.QUANT_WEIGHT)  # type: ignore[no-any-return,no-untyped-call]
