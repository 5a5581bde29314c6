"""Canonical forms compute, and train, as the model does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from tests import helpers


@pytest.mark.parametrize("bounds", [(3,), (-2, 3)], ids=["high", "low and high"])
def test_gradients_flow_beside_random_integers(bounds: tuple[int, ...]) -> None:
    def body(m: nn.Module, x: Tensor) -> Tensor:
        h: Tensor = m.layer(x)  # type: ignore[operator]
        return h * (torch.randint_like(h, *bounds) * 0 + 1)

    model = helpers.ready(helpers.Function(body, layer=nn.Linear(4, 5)))
    x = helpers.image(3, 4)
    captured = fxcompress.capture(model, x)
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    got = torch.autograd.grad(captured(x).sum(), list(captured.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=helpers.EXACT, atol=0)
