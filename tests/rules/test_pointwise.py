"""Pointwise functions: f(0) as the operator itself computes it, products with zero, broadcasting, GLU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.propagate import propagate_constants
from tests.helpers import (
    Function,
    Masks,
    image,
    make_masks,
    ready,
    relative_error,
    run,
    shrunk,
    size,
    weight_shape,
)

F0: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (F.relu, 0.0),
    "sigmoid": (torch.sigmoid, 0.5),
    "gelu": (F.gelu, 0.0),
    "silu": (F.silu, 0.0),
    "hardswish": (F.hardswish, 0.0),
    "hardsigmoid": (F.hardsigmoid, 0.5),
    "exp": (torch.exp, 1.0),
    "cos": (torch.cos, 1.0),
    "tanh": (torch.tanh, 0.0),
    "softplus": (F.softplus, 0.6931471805599453),
    "logsigmoid": (F.logsigmoid, -0.6931471805599453),
    "mish": (F.mish, 0.0),
    "elu": (F.elu, 0.0),
    "leaky_relu": (F.leaky_relu, 0.0),
    "hardtanh": (lambda x: F.hardtanh(x, 0.25, 0.5), 0.25),
    "threshold": (lambda x: F.threshold(x, 0.1, 7.0), 7.0),
    "rsub": (lambda x: 1.5 - x, 1.5),
    "rsqrt": (lambda x: torch.rsqrt(x * x + 4.0), 0.5),
    "where": (lambda x: torch.where(x > 0.1, x, x + 3.0), 3.0),
    "masked_fill": (lambda x: x.masked_fill(x < 0.1, -0.4), -0.4),
    "equality": (lambda x: (x == 0).to(x.dtype), 1.0),
}


@pytest.fixture(scope="module")
def network() -> tuple[fxcompress.CompiledModule, nn.Module, Masks]:
    """Every function of the table on the same masked channels, each read by a layer of its own."""

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.ModuleList(nn.Linear(3, 4) for _ in F0)
            self.head = nn.ModuleList(nn.Linear(4, 2) for _ in F0)

        def forward(self, x: Tensor) -> list[Tensor]:
            triples = zip(self.stem, self.head, F0.values(), strict=True)
            return [head(function(stem(x))) for stem, head, (function, _) in triples]

    model = ready(All())
    masks = make_masks(model, {f"stem.{i}": {"rows": [1, 2], "bias": [2]} for i in range(len(F0))})
    return fxcompress.capture(model, image(3, 3)), model, masks


@pytest.mark.parametrize("name", F0)
def test_a_zero_channel_becomes_what_the_operator_makes_of_it(
    network: tuple[fxcompress.CompiledModule, nn.Module, Masks], name: str
) -> None:
    from fxcompress.passes.insert_masks import insert_masks
    from fxcompress.pruning.masks import qualified

    module, _, masks = network
    twin = module.fork()
    insert_masks(twin, qualified(masks))
    values = propagate_constants(twin, analyze_axes(twin))
    index = list(F0).index(name)
    head = next(n for n in twin.graph.nodes if n.target == f"head.{index}")
    found = values.slices(head.args[0], 1)
    assert found is not None
    assert found.isnan().tolist() == [True, False, False, True]
    assert float(found[2]) == pytest.approx(F0[name][1], rel=1e-12, abs=1e-15)


def test_all_of_them_are_removed_exactly(network: tuple[fxcompress.CompiledModule, nn.Module, Masks]) -> None:
    from tests.helpers import apply_masks

    module, model, masks = network
    small = fxcompress.speedup(module, masks=masks)
    assert relative_error(run(small, (image(3, 3),)), run(apply_masks(model, masks), (image(3, 3),))) <= 1e-9
    assert size(small) == size(model) - len(F0) * 2 * (3 + 1 + 2)


def test_a_product_with_a_zero_channel_is_zero_whatever_the_other_side() -> None:
    model = Function(
        lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x))),
        a=nn.Linear(3, 5),
        b=nn.Linear(3, 5),
        c=nn.Linear(5, 2),
    )
    small = shrunk(model, image(2, 3), {"a": {"rows": [0, 4], "bias": [0, 4]}})
    assert (weight_shape(small, "b")[0], weight_shape(small, "c")[1]) == (3, 3)


def test_an_addition_of_one_sided_zeros_keeps_the_channel() -> None:
    model = Function(
        lambda m, x: m.c(m.a(x) + m.b(x)), a=nn.Linear(3, 5), b=nn.Linear(3, 5), c=nn.Linear(5, 2)
    )
    small = shrunk(
        model, image(2, 3), {"a": {"rows": [0, 4], "bias": [0, 4]}, "b": {"rows": [4], "bias": [4]}}
    )
    assert (weight_shape(small, "a")[0], weight_shape(small, "b")[0]) == (4, 4)


@pytest.mark.parametrize("slopes", [1, 6])
def test_prelu(slopes: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.PReLU(slopes), nn.Conv2d(6, 2, 1))
    small = shrunk(model, image(2, 3, 4, 4), {"0": {"rows": [0, 2], "bias": [0]}})
    assert weight_shape(small, "1") == ((4,) if slopes == 6 else (1,))


@pytest.mark.parametrize(("rows", "left"), [([1, 4], 4), ([1], 4), ([4], 6)])
def test_glu_loses_a_channel_with_its_gate_when_the_value_is_zero(rows: list[int], left: int) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.GLU(), nn.Linear(3, 2))
    small = shrunk(model, image(2, 3), {"0": {"rows": rows, "bias": rows}})
    assert weight_shape(small, "0")[0] == left
