"""Joining, indexing, pooling, reducing, creating, contracting: what goes, case by case, always exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import Function, image, operators, shrunk, weight_shape

Body = Callable[[Any, Tensor], Any]
ZERO = {"rows": [1, 5], "bias": [1, 5]}
CONSTANT = {"rows": [1, 5]}
mean: Callable[[Tensor], Tensor] = lambda y: y.mean((2, 3))  # noqa: E731

# name: (body on `m.a: 3 → 8 channels`, readers `m.b<width>`, filters of `a` left: masked with bias, without)
CASES: dict[str, tuple[Body, int, int]] = {
    # joining
    "cat": (lambda m, x: m.b16(mean(torch.cat([m.a(x), m.a(x).exp()], 1))), 6, 6),
    "cat with the input": (lambda m, x: m.b11(mean(torch.cat([x, m.a(x)], 1))), 6, 6),
    "split in unequal parts": (lambda m, x: m.b8(mean(torch.cat(m.a(x).split([5, 3], 1)[::-1], 1))), 6, 6),
    "halves multiplied": (lambda m, x: m.b4(mean((lambda u, v: u * v)(*m.a(x).chunk(2, 1)))), 6, 6),
    "stack": (lambda m, x: m.b8(mean(torch.stack([m.a(x), m.a(x) * 2], 0).sum(0))), 6, 8),
    "unbind": (lambda m, x: m.b8(m.a(x).mean(3).unbind(2)[1]), 6, 6),
    # indexing
    "strided slice": (lambda m, x: m.b4(mean(m.a(x)[:, 1::2])), 2, 2),
    "negative slice": (lambda m, x: m.b3(mean(m.a(x)[:, -3:])), 2, 2),
    "flip": (lambda m, x: m.b8(mean(m.a(x).flip(1))), 6, 6),
    "roll": (lambda m, x: m.b8(mean(m.a(x).roll(3, 1))), 6, 6),
    "select one channel": (lambda m, x: m.b4(m.a(x)[:, 1].mean(1)), 1, 1),
    "tensor index of positions": (lambda m, x: m.b8(mean(m.a(x)[:, :, torch.tensor([0, 2])])), 6, 6),
    # pooling and padding
    "max pool": (lambda m, x: m.b8(mean(F.max_pool2d(m.a(x), 2, padding=1))), 6, 6),
    "average counting its padding": (lambda m, x: m.b8(mean(F.avg_pool2d(m.a(x), 3, padding=1))), 6, 8),
    "average not counting it": (
        lambda m, x: m.b8(mean(F.avg_pool2d(m.a(x), 3, padding=1, count_include_pad=False))), 6, 6,
    ),
    "divisor": (lambda m, x: m.b8(mean(F.avg_pool2d(m.a(x), 2, divisor_override=3))), 6, 8),
    "constant padding": (lambda m, x: m.b8(mean(F.pad(m.a(x), (1, 1), value=1.0))), 8, 8),
    "zero padding": (lambda m, x: m.b8(mean(F.pad(m.a(x), (1, 1)))), 6, 8),
    "padded channels": (lambda m, x: m.b11(mean(F.pad(m.a(x), (0, 0, 0, 0, 1, 2), value=0.5))), 6, 6),
    "interpolation": (lambda m, x: m.b8(mean(F.interpolate(m.a(x), size=7, mode="bilinear"))), 6, 6),
    "channel shuffle": (lambda m, x: m.b8(mean(F.channel_shuffle(m.a(x), 2))), 6, 6),
    "pixel shuffle": (lambda m, x: m.b2(mean(F.pixel_shuffle(m.a(x), 2))), 8, 8),
    # reducing
    "sum over channels": (lambda m, x: m.b4(m.a(x).sum(1).mean(1)), 6, 8),
    "mean over channels": (lambda m, x: m.b4(m.a(x).mean(1).mean(1)), 8, 8),
    "maximum over channels": (lambda m, x: m.b4(m.a(x).amax(1).mean(1)), 8, 8),
    "maximum over space": (lambda m, x: m.b8(m.a(x).amax((2, 3))), 6, 6),
    "sum over space": (lambda m, x: m.b8(m.a(x).sum((2, 3))), 6, 8),
    "softmax over channels": (lambda m, x: m.b8(mean(m.a(x).softmax(1))), 8, 8),
    # creating
    "ones": (lambda m, x: m.b8(mean(m.a(x) * torch.ones(1, 8, 1, 1, dtype=x.dtype))), 6, 6),
    "full": (lambda m, x: m.b8(mean(m.a(x) + torch.full((8, 1, 1), 0.3, dtype=x.dtype))), 6, 6),
    "arange": (lambda m, x: m.b8(mean(m.a(x) * torch.arange(8, dtype=x.dtype)[:, None, None])), 8, 8),
    # contracting
    "gram matrix": (lambda m, x: m.b64(torch.bmm(m.a(x).flatten(2), m.a(x).flatten(2).mT).flatten(1)), 6, 8),
    "positions compared": (lambda m, x: m.b4((m.a(x)[:, :, 0].mT @ m.a(x)[:, :, 1]).mean(2)), 6, 8),
    "einsum": (lambda m, x: m.b4(torch.einsum("nchw,nchv->nw", m.a(x), m.a(x).sigmoid())), 6, 8),
    "repeated channels": (lambda m, x: m.b16(mean(m.a(x).repeat(1, 2, 1, 1))), 6, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_goes(name: str) -> None:
    body, zero, constant = CASES[name]
    readers = {f"b{n}": nn.Linear(n, 2) for n in (2, 3, 4, 8, 11, 16, 64)}
    model = Function(body, a=nn.Conv2d(3, 8, 1), **readers)
    x = image(2, 3, 5, 4)
    left = [weight_shape(shrunk(model, x, {"a": plan}), "a")[0] for plan in (ZERO, CONSTANT)]
    assert left == [zero, constant]


def test_the_parts_of_a_buffer_lose_channels() -> None:
    def modulated(m: Any, x: Tensor) -> Tensor:
        scale, shift = m.table.chunk(2)
        result: Tensor = m.b(m.a(x) * scale + shift)
        return result

    model = Function(modulated, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    model.register_buffer("table", image(16))
    small = shrunk(model, image(2, 3), {"a": {"rows": [2, 3], "bias": [2, 3]}})
    assert dict(small.named_buffers())["table"].shape == (12,)


def test_an_irregular_choice_becomes_an_index() -> None:
    model = Function(lambda m, x: m.b(m.a(x)[:, 1::2]), a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    small = shrunk(model, image(2, 3), {"a": {"rows": [3], "bias": [3]}})
    assert weight_shape(small, "a")[0] == 3
    assert operators(small)[1] in ("index_select", "slice")


def test_an_embedding_loses_features_but_no_rows() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    small = shrunk(model, torch.tensor([[1, 2], [3, 8]]), {"0": {"rows": [4], "columns": [0, 3]}})
    assert weight_shape(small, "0") == (9, 4)
    assert weight_shape(small, "1") == (5, 4)
