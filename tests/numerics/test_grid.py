"""Grids: scales, zero points and rounding, against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.errors import ConfigError
from fxcompress.numerics.grid import SMALLEST_SCALE, Grid

P8 = Grid(8, False, False, power_of_two=True)
U8, S8 = Grid(8, signed=False, symmetric=False), Grid(8, signed=True, symmetric=True)


@pytest.mark.parametrize(
    ("grid", "low", "high", "scale", "zero_point"),
    [
        (U8, 0.0, 5.0, 5 / 255, 0),
        (U8, -1.0, 5.0, 6 / 255, 42),  # 42.5, halves to even
        (U8, 1.0, 5.0, 5 / 255, 0),  # 0 is always a number of the grid
        (U8, -5.0, -1.0, 5 / 255, 255),
        (S8, -2.0, 1.0, 2 / 127, 0),
        (Grid(8, signed=True, symmetric=False), -1.0, 4.0, 5 / 255, -77),
        (Grid(8, signed=False, symmetric=True), -1.0, 0.5, 1 / 127, 128),
        (Grid(4, signed=True, symmetric=True), -0.7, 0.2, 0.1, 0),
        (Grid(1, signed=False, symmetric=False), 0.0, 3.0, 3.0, 0),
        (P8, 0.0, 5.0, 2.0**-5, 0),
        (P8, 0.0, 255 / 64, 2.0**-6, 0),  # already one
        (P8, -1.0, 5.0, 2.0**-5, 32),
    ],
)
def test_scale_and_zero_point(grid: Grid, low: float, high: float, scale: float, zero_point: int) -> None:
    s, z = grid.parameters(torch.tensor(low), torch.tensor(high))
    assert s.item() == pytest.approx(scale, rel=1e-6)
    assert (z.item(), z.dtype, s.dtype) == (zero_point, torch.int32, torch.float32)


@pytest.mark.parametrize(
    ("grid", "ends"),
    [
        (U8, (0, 255)),
        (S8, (-127, 127)),
        (Grid(8, True, False), (-128, 127)),
        (Grid(4, False, False), (0, 15)),
    ],
)
def test_the_ends_of_a_grid(grid: Grid, ends: tuple[int, int]) -> None:
    assert (grid.qmin, grid.qmax) == ends


def test_one_signed_symmetric_bit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 2 .* 'bnn'"):
        Grid(1, signed=True, symmetric=True).check()


def test_a_tensor_of_zeros_has_a_scale() -> None:
    for grid in (U8, S8, P8):
        scale, zero_point = grid.parameters(torch.zeros(()), torch.zeros(()))
        assert scale.item() >= SMALLEST_SCALE
        assert grid.fake_quantize(torch.zeros(3), scale, zero_point).tolist() == [0.0] * 3


def test_rounding_by_hand_halves_to_even_and_clips() -> None:
    scale, zero_point = torch.tensor(0.5), torch.tensor(2, dtype=torch.int32)
    x = torch.tensor([-9.0, -0.25, 0.25, 0.75, 1.0, 200.0])
    q = U8.quantize(x, scale, zero_point)
    assert q.tolist() == [0, 2, 2, 4, 4, 255]
    assert U8.fake_quantize(x, scale, zero_point).tolist() == [-1.0, 0.0, 0.0, 1.0, 1.0, 126.5]


def test_every_channel_has_a_scale_of_its_own() -> None:
    grid = Grid(8, signed=True, symmetric=True, axis=0)
    weight = torch.tensor([[1.0, -0.5], [0.1, 0.02]])
    scale, zero_point = grid.parameters(weight.amin(1), weight.amax(1))
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 0.1 / 127]), rtol=1e-6, atol=0)
    assert grid.quantize(weight, scale, zero_point).tolist() == [[127, -64], [127, 25]]


@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    axis=st.sampled_from([None, 0, 1]),
    seed=st.integers(0, 99),
)
def test_fake_quantize_is_the_integers_times_the_scale(
    bits: int, signed: bool, symmetric: bool, axis: int | None, seed: int
) -> None:
    """Law: the kernel of training and the integers of deployment are one rounding."""
    grid = Grid(bits, signed, symmetric, axis)
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3
    dims = [d for d in range(3) if d != axis]
    scale, zero_point = grid.parameters(x.amin(dims), x.amax(dims))
    q = grid.quantize(x, scale, zero_point)
    assert grid.qmin <= int(q.min()) <= int(q.max()) <= grid.qmax
    back = (q - grid.aligned(zero_point, x)) * grid.aligned(scale, x)
    assert torch.equal(back, grid.fake_quantize(x, scale, zero_point))
    assert float((back - x).abs().max()) <= float(scale.max()) * 1.01, "nothing in the range moves by more"


def test_gradients_pass_within_the_range_only() -> None:
    x = torch.tensor([-2.0, -0.9, 0.0, 0.9, 2.0], requires_grad=True)
    scale, zero_point = U8.parameters(torch.tensor(-1.0), torch.tensor(1.0))
    U8.fake_quantize(x, scale, zero_point).sum().backward()
    grad: Tensor | None = x.grad
    assert grad is not None
    assert grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
