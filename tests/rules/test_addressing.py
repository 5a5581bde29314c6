"""Indices known and unknown: addressed dimensions stay, the others lose their slices, always exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from tests.helpers import Function, image, operators, shrunk, weight_shape

Body = Callable[[Any, Tensor], Any]
aten = torch.ops.aten
ZERO = {"rows": [1, 5], "bias": [1, 5]}
CONSTANT = {"rows": [1, 5]}
mean: Callable[[Tensor], Tensor] = lambda y: y.mean((2, 3))  # noqa: E731
PERMUTATION = [3, 1, 0, 2, 7, 6, 5, 4]


def _positions(y: Tensor) -> Tensor:
    """``[n, c, 2, w]``: rows 1 and 2, or 2 and 3, of ``y [n, c, h, w]``."""
    return (y[:, :, :2] > 0.1).long() + torch.tensor([1, 2])[:, None]


def _put(y: Tensor, values: Tensor, *indices: Tensor | None, accumulate: bool = False) -> Tensor:
    result: Tensor = aten.index_put.default(y, list(indices), values, accumulate)
    return result


# name: (body on `m.a: 3 → 8 channels`, filters of `a` left: masked with bias, without)
CASES: dict[str, tuple[Body, int, int]] = {
    # known indices
    "permuted channels": (lambda m, x: m.b8(mean(m.a(x)[:, PERMUTATION])), 6, 6),
    "repeated channels": (lambda m, x: m.b4(mean(m.a(x)[:, [0, 0, 1, -3]])), 1, 1),
    "one from the end": (lambda m, x: m.b8(m.a(x)[..., [-2], :].mean((2, 3))), 6, 6),
    "fused in one product": (
        lambda m, x: m.b4(mean(m.a(x)[:, :4] * m.a(x)[:, [-4]] + m.a(x)[:, [-1]])), 6, 6,
    ),
    "computed index": (lambda m, x: m.b4(mean(m.a(x)[:, torch.arange(4) * 2 + 1])), 2, 2),
    "known index_select": (lambda m, x: m.b2(mean(m.a(x).index_select(1, torch.tensor([7, 1])))), 1, 1),
    # indices known at run time
    "index of positions": (lambda m, x: m.b8(m.a(x)[:, :, (x[0, 0, 0] > 0).long()].mean((2, 3))), 6, 6),
    "selected positions": (
        lambda m, x: m.b8(m.a(x).index_select(2, (x[0, 0, 0] > 0).long()).mean((2, 3))), 6, 6,
    ),
    "two indices together": (
        lambda m, x: m.b8(m.a(x)[:, :, (x[0, 0, 0] > 0).long(), torch.arange(4)].mean(2)), 6, 6,
    ),
    "two indices apart": (
        lambda m, x: m.b8(
            m.a(x).transpose(1, 2)[:, (x[0, 0, 0] > 0).long(), :, torch.arange(4)].mean(0)
        ), 6, 6,
    ),
    "a matrix of indices": (
        lambda m, x: m.b8(m.a(x)[:, :, torch.tensor([[0, 1], [2, 3]])].mean((2, 3, 4))), 6, 6,
    ),
    "index of channels": (lambda m, x: m.b2(mean(m.a(x)[:, (x[0, 0, 0, :2] > 0).long()])), 8, 8),
    # gathering
    "gathered positions": (lambda m, x: m.b8(mean(m.a(x).gather(2, _positions(m.a(x))))), 6, 6),
    "gathered by fewer channels": (
        lambda m, x: m.b4(mean(m.a(x).gather(2, _positions(m.a(x))[:, :4]))), 3, 3,
    ),
    "one index for all channels": (
        lambda m, x: m.b8(mean(torch.take_along_dim(m.a(x), _positions(x)[:, :1], 2))), 6, 6,
    ),
    "the best positions": (
        lambda m, x: m.b8(
            m.a(x).flatten(2).gather(2, m.a(x).flatten(2).sum(1, True).topk(2)[1].expand(-1, 8, -1)).mean(2)
        ), 6, 8,
    ),
    "gathered channels": (lambda m, x: m.b2(mean(m.a(x).gather(1, (x[:, :2] > 0).long()))), 8, 8),
    # writing
    "scattered": (lambda m, x: m.b8(m.a(x).scatter(2, _positions(m.a(x)), m.a(x) * 2).amax((2, 3))), 6, 8),
    "scattered constant": (lambda m, x: m.b8(m.a(x).scatter(2, _positions(m.a(x)), 0.0).amax((2, 3))), 6, 8),
    "scattered other": (lambda m, x: m.b8(m.a(x).scatter(2, _positions(m.a(x)), 1.0).amax((2, 3))), 8, 8),
    "scattered into fewer channels": (
        lambda m, x: m.b8(mean(m.a(x).scatter(2, _positions(m.a(x))[:, :4], m.a(x)[:, :6]))), 6, 6,
    ),
    "added": (
        lambda m, x: m.b8(mean(m.a(x).index_add(2, (x[0, 0, 0, :2] > 0).long(), m.a(x)[:, :, :2]))), 6, 8,
    ),
    "put at rows": (
        lambda m, x: m.b8(mean(_put(m.a(x), m.a(x)[:, :, :2], None, None, torch.tensor([1, 4])))), 6, 6,
    ),
    "put one value": (
        lambda m, x: m.b8(mean(_put(m.a(x), x.new_zeros(()), None, None, torch.tensor([1])))), 6, 8,
    ),
    "put under a mask": (
        lambda m, x: m.b8(
            _put(m.a(x).movedim(1, 3), x.new_zeros(8), x[:, 0] > 0.3).mean((1, 2))
        ), 6, 8,
    ),
    "accumulated": (
        lambda m, x: m.b8(
            mean(_put(m.a(x), m.a(x)[:, :, :2], None, None, torch.tensor([1, 1]), accumulate=True))
        ), 6, 8,
    ),
    "a slice replaced": (lambda m, x: m.b8(mean(m.a(x).slice_scatter(m.a(x)[:, :, :1] * 3, 2, 1, 2))), 6, 8),
    # along positions
    "softmax over positions": (lambda m, x: m.b8(m.a(x).softmax(2).amax((2, 3))), 6, 6),
    "log-softmax over positions": (lambda m, x: m.b8(mean(m.a(x).log_softmax(3))), 6, 6),
    "sorted positions": (lambda m, x: m.b8(m.a(x).sort(2)[0][:, :, 1].mean(2)), 6, 6),
    "topmost positions": (lambda m, x: m.b8(m.a(x).topk(2, 2)[0].mean((2, 3))), 6, 6),
    "differences": (lambda m, x: m.b8(mean(m.a(x).diff(dim=2).abs())), 6, 6),
    "maximum and its place": (
        lambda m, x: m.b8((lambda v, i: v * (i < 9))(*m.a(x).max(2)).mean(2)), 6, 8,
    ),
    "windows": (lambda m, x: m.b8(m.a(x).unfold(2, 3, 1).mean((2, 3, 4))), 6, 6),
    "buckets": (
        lambda m, x: m.b8(mean(torch.bucketize(m.a(x), torch.tensor([-0.3, 0.3]).to(x)).to(x))), 6, 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_goes(name: str) -> None:
    body, zero, constant = CASES[name]
    readers = {f"b{n}": nn.Linear(n, 2) for n in (2, 4, 8)}
    model = Function(body, a=nn.Conv2d(3, 8, 1), **readers)
    x = image(2, 3, 5, 4)
    left = [weight_shape(shrunk(model, x, {"a": plan}), "a")[0] for plan in (ZERO, CONSTANT)]
    assert left == [zero, constant]


def test_a_known_index_follows_what_is_kept() -> None:
    model = Function(lambda m, x: m.b(m.a(x)[:, [5, 3, 0, 7]]), a=nn.Linear(3, 8), b=nn.Linear(4, 2))
    small = shrunk(model, image(2, 3), {"a": {"rows": [3], "bias": [3]}})
    assert weight_shape(small, "a")[0] == 3
    assert weight_shape(small, "b")[1] == 3
    assert "index_select" in operators(small)


def test_heads_of_a_table_of_positions_go() -> None:
    def biased(m: Any, x: Tensor) -> Tensor:
        scores = (
            m.a(x).unflatten(1, (4, 5))
            + m.table.weight[m.index.reshape(-1)].view(5, 5, 4).permute(2, 1, 0)[:, 0, :]
        )
        result: Tensor = m.b(scores.softmax(2).flatten(1))
        return result

    model = Function(biased, a=nn.Linear(3, 20), b=nn.Linear(20, 2), table=nn.Embedding(9, 4))
    model.register_buffer("index", torch.arange(5)[:, None] - torch.arange(5) + 4)
    plan: dict[str, dict[str, Any]] = {"b": {"columns": [5, 6, 7, 8, 9]}}
    small = shrunk(model, image(2, 3), plan)
    assert weight_shape(small, "a")[0] == 15
    assert weight_shape(small, "table") == (9, 3)


def test_an_embedding_bag_loses_features() -> None:
    model = Function(lambda m, x: m.b(m.a(x)), a=nn.EmbeddingBag(9, 6, mode="sum"), b=nn.Linear(6, 2))
    small = shrunk(model, torch.tensor([[1, 2], [3, 8]]), {"b": {"columns": [0, 3]}})
    assert weight_shape(small, "a") == (9, 4)
    assert "EmbeddingBag(9, 4" in str(small)
    small = shrunk(model, torch.tensor([[1, 2], [3, 8]]), {"a": {"columns": [1]}})
    assert weight_shape(small, "a") == (9, 5)


class Positions(nn.Module):
    """Rows of a table at known places."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(12, 8))
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table.index_select(0, torch.arange(5) + 2)
        result: Tensor = self.head(self.embed(x) + rows)
        return result


def test_rows_of_a_table_nobody_reads_go() -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    masked = fxcompress.compile(Positions().double(), [{"op_names": ["embed"], "sparsity": 0.5}], x)
    small = fxcompress.speedup(masked, x)
    assert dict(small.named_buffers())["table"].shape == (5, 4)
    torch.testing.assert_close(small(x), masked(x), rtol=0, atol=1e-9)
