"""Products, distances and similarities: what goes, case by case, always exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import Function, image, shrunk, weight_shape

Body = Callable[[Any, Tensor], Any]
ZERO = {"rows": [1, 5], "bias": [1, 5]}
CONSTANT = {"rows": [1, 5]}

# name: (body on `m.a: 3 → 8 features` at 4 positions, filters of `a` left: masked with bias, without)
CASES: dict[str, tuple[Body, int, int]] = {
    "cosine of features": (lambda m, x: m.b4(F.cosine_similarity(m.a(x), m.a(x).relu(), 2)), 6, 8),
    "cosine with others": (lambda m, x: m.b4(F.cosine_similarity(m.a(x), m.c(x), 2)), 8, 8),
    "cosine over positions": (lambda m, x: m.b8(F.cosine_similarity(m.a(x), m.c(x), 1)), 6, 8),
    "cosine, broadcast": (lambda m, x: m.b4(F.cosine_similarity(m.a(x), m.a(x)[:, :1], -1)), 6, 8),
    "distances": (lambda m, x: m.b4(torch.cdist(m.a(x), m.a(x).relu()).mean(1)), 6, 6),
    "distances, other constants": (lambda m, x: m.b4(torch.cdist(m.a(x), m.a(x) * 2).mean(1)), 6, 8),
    "distance of pairs": (lambda m, x: m.b4(F.pairwise_distance(m.a(x), m.a(x) * 2)), 8, 8),
    "distance of pairs over positions": (
        lambda m, x: m.b8(F.pairwise_distance(m.a(x).mT, m.a(x).mT * 2)), 8, 8,
    ),
    "inner product with a vector": (lambda m, x: m.b4(torch.inner(m.a(x), m.c(x).sum((0, 1)))), 6, 8),
    "vector product": (
        lambda m, x: m.b8(torch.linalg.cross(m.a(x)[:, :3], m.c(x)[:, 1:], dim=1).mean(1)), 6, 8,
    ),
    "sum of products along features": (lambda m, x: m.b4(torch.linalg.vecdot(m.a(x), m.c(x))), 6, 8),
    "tensordot": (lambda m, x: m.b4(torch.tensordot(m.a(x), m.c(x)[0, :2], ([2], [1])).sum(2)), 6, 8),
    "added product": (lambda m, x: m.b4(torch.baddbmm(x.new_ones(4), m.a(x), m.c(x).mT).sum(1)), 6, 8),
    "zero added product": (
        lambda m, x: m.b8(torch.baddbmm(x.new_zeros(1), m.a(x).mT, m.c(x)[:, :, :3]).sum(2)), 6, 8,
    ),
    "kronecker": (lambda m, x: m.b16(torch.kron(m.a(x), torch.ones(1, 1, 2).to(x)).mean(1)), 6, 6 + 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_goes(name: str) -> None:
    body, zero, constant = CASES[name]
    readers = {f"b{n}": nn.Linear(n, 2) for n in (4, 8, 16)}
    model = Function(body, a=nn.Linear(3, 8), c=nn.Linear(3, 8), **readers)
    x = image(2, 4, 3)
    left = [weight_shape(shrunk(model, x, {"a": plan}), "a")[0] for plan in (ZERO, CONSTANT)]
    assert left == [zero, constant]


def test_both_sides_of_a_cosine_similarity_lose_what_is_zero_in_both() -> None:
    model = Function(
        lambda m, x: m.b(F.cosine_similarity(m.a(x), m.c(x), 2)),
        a=nn.Linear(3, 8), c=nn.Linear(3, 8), b=nn.Linear(4, 2),
    )  # fmt: skip
    plan = {"a": {"rows": [1, 5], "bias": [1, 5]}, "c": {"rows": [5, 7], "bias": [5, 7]}}
    small = shrunk(model, image(2, 4, 3), plan)
    assert weight_shape(small, "a")[0] == weight_shape(small, "c")[0] == 7


def test_a_bilinear_layer_says_its_new_sizes() -> None:
    model = Function(
        lambda m, x: m.b(m.mix(m.a(x), m.c(x))),
        a=nn.Linear(3, 8), c=nn.Linear(3, 7), mix=nn.Bilinear(8, 7, 6), b=nn.Linear(6, 2),
    )  # fmt: skip
    zero: dict[str, dict[str, Any]] = {"a": ZERO, "c": {"rows": [0], "bias": [0]}, "b": {"columns": [2]}}
    small = shrunk(model, image(2, 3), zero)
    assert "in1_features=6, in2_features=6, out_features=5" in str(small)
    assert weight_shape(small, "mix") == (5, 6, 6)
