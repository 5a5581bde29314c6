"""Rounding and its gradient are those of ``torch.fake_quantize_*``, bit for bit; but of values exactly half a
step beyond an end, which torch counts as within where the end is even, and we never.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcompress.numerics.grid import Grid
from fxcompress.numerics.rounding import rounded


def with_gradient(function: object, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the gradient of its product with 1, 2, 3, ..."""
    x = x.clone().requires_grad_()
    y = function(x)  # type: ignore[operator]
    y.backward(torch.arange(1.0, x.numel() + 1).view(x.shape))
    assert x.grad is not None
    return y.detach(), x.grad


def values() -> Tensor:
    """Within, at, and beyond the ends."""
    torch.manual_seed(0)
    steps = torch.arange(-280, 280).float()
    return torch.cat([steps * 0.25, 20 * torch.randn(358), torch.tensor([0.0, -0.0])]).view(2, -1)


@pytest.mark.parametrize("zero_point", [0, 70, 128, 255])
def test_one_scale_as_torch_does(zero_point: int) -> None:
    scale, zero = torch.tensor(0.25), torch.tensor(zero_point, dtype=torch.int32)
    expected = with_gradient(
        lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255), values()
    )
    found = with_gradient(lambda x: Grid(8, False, False).fake_quantize(x, scale, zero), values())
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scale_per_channel_as_torch_does(axis: int) -> None:
    x = values().view(2, -1) if axis == 0 else values().view(-1, 2)
    scale, zeros = torch.tensor([0.13, 0.31]), torch.zeros(2, dtype=torch.int32)
    expected = with_gradient(
        lambda x: torch.fake_quantize_per_channel_affine(x, scale, zeros, axis, -7, 7), x
    )
    found = with_gradient(lambda x: Grid(4, True, True, axis).fake_quantize(x, scale, zeros), x)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_rounds_by_hand() -> None:
    y, gradient = with_gradient(
        lambda x: rounded(x, torch.tensor(0.5), -2, 3), torch.tensor([-9.0, -1.0, 0.2, 0.25, 0.75, 1.5, 1.9])
    )
    assert y.tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 1.5, 1.5]
    assert gradient.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]
