"""GroupFakeQuantize: a grid for every few inputs of every output, against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from fxcompress.errors import FxcompressError
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.grouped import GroupFakeQuantize

AFFINE = Grid(4, signed=False, symmetric=False)
SYMMETRIC = Grid(4, signed=False, symmetric=True)


def test_every_group_has_the_scale_and_zero_point_of_its_own_range() -> None:
    """Groups of 2 of a [2, 4] weight, 15 steps each: (−3, 12) → s = 1, z = 3; (0, 7.5) → ½, 0; ..."""
    quantizer = GroupFakeQuantize(AFFINE, 2)
    weight = torch.tensor([[-3.0, 12.0, 0.26, 7.5], [-1.5, 0.04, 0.0, 0.0]])
    got = quantizer(weight)
    assert got.tolist()[0] == [-3.0, 12.0, 0.5, 7.5]
    # s = 1.54 / 15 and −1.5 is 14.6 steps below 0: z = 15, and so many steps it becomes; 0.04 is below half.
    torch.testing.assert_close(got[1], torch.tensor([-1.54, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(quantizer.scale[:3], torch.tensor([1.0, 0.5, 1.54 / 15]))
    assert quantizer.zero_point.tolist() == [3, 0, 15, 0]


def test_a_symmetric_group_has_its_zero_in_the_middle() -> None:
    quantizer = GroupFakeQuantize(SYMMETRIC, 2)
    weight = torch.tensor([[-7.0, 3.4, 0.7, -0.16]])
    torch.testing.assert_close(quantizer(weight), torch.tensor([[-7.0, 3.0, 0.7, -0.2]]))
    assert quantizer.zero_point.tolist() == [8, 8]
    integers, zeros = quantizer.unsigned(weight)
    assert (integers.tolist(), zeros.tolist()) == ([[1, 11, 15, 6]], [[8, 8]])


def test_a_last_group_that_is_not_full_has_zeros_behind_it() -> None:
    quantizer = GroupFakeQuantize(AFFINE, 4)
    weight = torch.tensor([[1.0, 2.0, 3.0, 15.0, 30.0, 20.0], [1.0, 1.0, 1.0, 1.0, -30.0, 0.0]])
    got = quantizer(weight)
    torch.testing.assert_close(got, weight)
    assert got.shape == (2, 6)
    torch.testing.assert_close(quantizer.scale, torch.tensor([1.0, 2.0, 1 / 15, 2.0]))
    integers, zeros = quantizer.unsigned(weight)
    assert integers.tolist() == [[1, 2, 3, 15, 15, 10, 0, 0], [15, 15, 15, 15, 0, 15, 15, 15]]
    assert zeros.tolist() == [[0, 0], [0, 15]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_signed_integers_are_the_unsigned_ones_moved(symmetric: bool) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    found = []
    for signed in (False, True):
        quantizer = GroupFakeQuantize(Grid(4, signed, symmetric), 32)
        found.append((quantizer(weight), *quantizer.unsigned(weight)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(3, 6, requires_grad=True)
    GroupFakeQuantize(AFFINE, 4)(weight).backward(torch.ones(3, 6))
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0] * 6] * 3


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(FxcompressError, match=r"expected a matrix \[out, in\], got shape \(2, 3, 1, 1\)"):
        GroupFakeQuantize(AFFINE, 16)(torch.zeros(2, 3, 1, 1))
