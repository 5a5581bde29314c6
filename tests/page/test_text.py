"""Figures as texts."""

from __future__ import annotations

import math

import pytest

from fxcompress.page.data import Amounts
from fxcompress.page.text import amount, arrow, change, decibels, exact, shape, shortened


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "", "–"),
        (0, "", "0"),
        (1000, "", "1,000"),
        (9999, "", "9,999"),
        (10_000, "", "10 k"),
        (147_456, "", "147 k"),
        (1_230_000, "", "1.23 M"),
        (4.1e9, "", "4.1 G"),
        (2_797_608, "bytes", "2.8 MB"),
        (700, "bytes", "700 B"),
        (0.000_31, "s", "0.31 ms"),
        (2.5, "s", "2.5 s"),
        (0.98765, "metric", "0.9877"),
    ],
)
def test_amounts(value: float | None, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_exact_amounts_have_all_digits() -> None:
    assert (exact(2_797_608, "bytes"), exact(0.5, "s"), exact(None)) == ("2,797,608", "500 ms", "–")


@pytest.mark.parametrize(
    ("before", "after", "unit", "text"),
    [
        (200, 50, "", "-75.0%"),
        (0.98, 0.95, "metric", "-0.03"),
        (0, 5, "", ""),
        (None, 5, "bytes", ""),
    ],
)
def test_changes(before: float | None, after: float, unit: str, text: str) -> None:
    assert change(before, after, unit) == text


def test_arrows_say_the_unit_once() -> None:
    assert arrow(Amounts(64, 32)) == "64 → 32"
    assert arrow(Amounts(64, 64)) == "64"
    assert arrow(Amounts(147_000, 36_900)) == "147 → 36.9 k"
    assert arrow(Amounts(1_470_000, 36_900)) == "1.47 M → 36.9 k"
    assert arrow(Amounts(12_000, 704)) == "12 k → 704"
    assert arrow(Amounts(0.002, 0.001), "s") == "2 → 1 ms"
    assert arrow(None) == ""


def test_shapes() -> None:
    assert (shape((64, 3, 3, 3)), shape(()), shape(None)) == ("64×3×3×3", "scalar", "–")


def test_decibels() -> None:
    assert [decibels(v) for v in (41.27, math.inf, -math.inf, None)] == ["41.3", "∞", "-∞", "–"]


def test_long_names_lose_their_middle() -> None:
    assert shortened("layer2.0.downsample.0", 21) == "layer2.0.downsample.0"
    assert shortened("layer2.0.downsample.0", 20) == "layer2.…downsample.0"
    assert len(shortened("x" * 100, 20)) == 20
