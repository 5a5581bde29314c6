"""Statistics over the kept channels are those of a tensor that has no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress import ops

KEPT = torch.tensor([0, 2, 3, 6])
MASK = torch.zeros(7, dtype=torch.float64).index_fill_(0, KEPT, 1.0)
X = torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
W = torch.tensor([1.5, -0.5, 0.7], dtype=torch.float64)

OVER_CHANNELS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mean": (lambda x, m: ops.mean(x, m, [1]), lambda x: x.mean(1)),
    "mean of two": (lambda x, m: ops.mean(x, m[None], [2, 1], keepdim=True), lambda x: x.mean((1, 2), True)),
    "mean of all": (lambda x, m: ops.mean(x, m[None, :, None], None), lambda x: x.mean()),
    "var": (lambda x, m: ops.var(x, m, [1]), lambda x: x.var(1)),
    "var, biased": (lambda x, m: ops.var(x, m, [-2], unbiased=False), lambda x: x.var(1, unbiased=False)),
    "std": (lambda x, m: ops.std(x, m, [1], correction=2), lambda x: x.std(1, correction=2)),
    "amax": (lambda x, m: ops.amax(x, m, [1]), lambda x: x.amax(1)),
    "amin": (lambda x, m: ops.amin(x, m, [1], True), lambda x: x.amin(1, True)),
    "standardize": (
        lambda x, m: ops.standardize(x.mT, m[None], W, W, 1e-3).mT[:, KEPT],
        lambda x: F.batch_norm(x.mT, None, None, W, W, True, 0.1, 1e-3).mT,
    ),
    "softmax": (lambda x, m: ops.softmax(x, m, 1)[:, KEPT], lambda x: x.softmax(1)),
    "rms_norm": (
        lambda x, m: ops.rms_norm(x.mT, m, [7], m * 2, None).mT[:, KEPT],
        lambda x: F.rms_norm(x.mT, [4], torch.full((4,), 2.0).double()).mT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_statistics_are_those_of_the_kept_channels(name: str) -> None:
    restricted, plain = OVER_CHANNELS[name]
    torch.testing.assert_close(restricted(X, MASK), plain(X[:, KEPT]), rtol=1e-12, atol=1e-12)


def test_pruned_outputs_are_zero() -> None:
    gone = MASK == 0
    assert bool((ops.softmax(X, MASK, 1)[:, gone] == 0).all())
    assert bool((ops.rms_norm(X.mT, MASK, [7], None, 1e-6).mT[:, gone] == 0).all())
    assert bool((ops.standardize(X.mT, MASK[None], None, None, 1e-6).mT[:, gone] == 0).all())
