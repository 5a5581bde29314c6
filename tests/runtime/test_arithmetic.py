"""The rounding of single operations, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fxcompress.runtime.arithmetic import fma, quantized, requantized


def is_nearest(value: np.float32, exact: Fraction) -> bool:
    """Whether ``value`` is ``exact`` rounded to float32, ties to even."""
    distance = abs(Fraction(float(value)) - exact)
    even = int(value.view(np.int32)) % 2 == 0
    for side in (np.float32(-np.inf), np.float32(np.inf)):
        other = abs(Fraction(float(np.nextafter(value, side))) - exact)
        if other < distance or (other == distance and not even):
            return False
    return True


@pytest.mark.parametrize("spread", [0, 4, 24, 40])
def test_fma_rounds_once(spread: int) -> None:
    random = np.random.default_rng(spread)
    a, b, c = (random.standard_normal(2000).astype(np.float32) for _ in range(3))
    c = np.ldexp(c, random.integers(-spread, spread + 1, 2000)).astype(np.float32)
    c[::3] = -(a * b)[::3]  # cancellation leaves the error of the product
    for x, y, z, value in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert is_nearest(value, exact), f"fma({x!r}, {y!r}, {z!r})"


@pytest.mark.parametrize("sign", [1, -1])
def test_fma_where_rounding_twice_would_err(sign: int) -> None:
    """(1 + 2⁻¹²)² lies between two float32; 2⁻⁷⁰ decides, which a float64 sum loses."""
    a = np.float32(1 + 2**-12)
    c = np.float32(sign * 2**-70)
    value = fma(a, a, c)
    assert value.shape == ()
    assert float(value) == 1 + 2**-11 + (2**-23 if sign > 0 else 0)
    assert float(np.float32(np.float64(a) * np.float64(a) + np.float64(c))) == 1 + 2**-11


def test_quantization_rounds_half_to_even_divides_and_saturates() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    dtype = np.dtype(np.uint8)
    assert quantized(values, np.float32(1), 10, dtype).tolist() == [10, 12, 12, 10, 8, 255, 0]
    third, step = np.array([0.35], np.float32), np.float32(0.1)
    assert quantized(third, step, 0, dtype).tolist() == [int(np.rint(third[0] / step))]


def test_requantization_rounds_the_accumulator_to_float32_first() -> None:
    accumulator = np.array([2.0**24 + 1, 2.0**24 + 3])
    result = requantized(accumulator, np.float32(2**-18), 0, np.dtype(np.int8))
    assert result.tolist() == [64, 64]
    assert requantized(np.array([3.0, -3.0]), np.float32(0.5), -1, np.dtype(np.int8)).tolist() == [1, -3]
