"""Layers whose weight is not one parameter: weight norm, weight standardization, ``x @ w.T``, ``addmm``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import fxcompress
from tests.helpers import check_exact, compiled, image, operators, ready, size


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019) by hand."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=self.padding)


class Transposed(nn.Linear):
    """``x @ w.T + b``."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is ``[in, out]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return rows.view(*x.size()[:-1], -1)


def convnet(make: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(make(3, 8), nn.BatchNorm2d(8), nn.SiLU(), make(8, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def mlp(make: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(make(5, 8), nn.GELU(), make(8, 8), nn.ReLU(), nn.Linear(8, 4))


CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "weight norm per filter": lambda i, o: weight_norm(nn.Conv2d(i, o, 3, padding=1)),
    "weight norm per position": lambda i, o: weight_norm(nn.Conv2d(i, o, 3, padding=1), dim=3),
    "standardized": lambda i, o: Standardized(i, o, 3, padding=1),
}
LINEARS: dict[str, Callable[[int, int], nn.Module]] = {"transposed": Transposed, "Conv1D": Conv1D}
MAKERS = CONVS | LINEARS


def subject(name: str) -> tuple[nn.Module, Tensor, str]:
    """Two such layers, each followed by an activation, then a plain one; an input; the plain one's name."""
    if name in CONVS:
        return ready(convnet(CONVS[name])), image(2, 3, 6, 6).double(), "5"
    return ready(mlp(LINEARS[name])), torch.randn(2, 7, 5).double(), "4"


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_filters_are_masked_and_the_small_model_is_the_masked_one(name: str, aware: bool) -> None:
    model, x, last = subject(name)
    config: list[dict[str, Any]] = [{"sparsity": 0.5}, {"exclude": True, "op_names": [last]}]
    masked = fxcompress.compile(model, config, x, dependency_aware=aware)
    small = fxcompress.speedup(masked)
    check_exact(small, masked, x)
    assert bool(torch.isfinite(masked(x)).all())
    if aware or name != "weight norm per position":  # whose norms run over the filters: all stay
        assert size(small) < size(model)
    if aware:
        shapes = {n: tuple(p.shape) for n, p in small.named_parameters()}
        assert all(8 not in shape for shape in shapes.values()), shapes


@pytest.mark.parametrize("name", MAKERS)
def test_single_weights_are_masked_too(name: str) -> None:
    model, x, _ = subject(name)
    masked = compiled(model, x, pruner="level")
    assert bool(torch.isfinite(masked(x)).all())
    check_exact(fxcompress.speedup(masked), masked, x)
    assert not torch.equal(masked(x), fxcompress.capture(model, x)(x))


def test_a_product_with_a_transposed_weight_is_a_linear_layer() -> None:
    model, x, _ = subject("transposed")
    module = fxcompress.capture(model, x)
    assert "linear" in operators(module)
    assert "matmul" not in operators(module)
    check_exact(module, model, x)
