"""Budgets: shares and amounts with units."""

from __future__ import annotations

from typing import Any

import pytest

from fxcompress.auto.limits import Limit, limits_of
from fxcompress.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("macs", 0.35, Limit("macs", 0.35, True)),
        ("macs", "35%", Limit("macs", 0.35, True)),
        ("parameters", "1.2M", Limit("parameters", 1.2e6, False)),
        ("macs", 1_000_000, Limit("macs", 1e6, False)),
        ("size", "200 KiB", Limit("size", 204800.0, False)),
        ("latency", "2ms", Limit("latency", 0.002, False)),
        ("latency_torch", "0.5", Limit("latency_torch", 0.5, True)),
    ],
)
def test_limits_are_shares_or_amounts(kind: str, value: Any, expected: Limit) -> None:
    (found,) = limits_of({kind: value})
    assert (found.kind, found.relative) == (expected.kind, expected.relative)
    assert found.amount == pytest.approx(expected.amount, rel=1e-12)


def test_excess_is_the_share_above() -> None:
    result = {"measured": {"macs": 150.0}, "shares": {"macs": 0.3}}
    assert Limit("macs", 0.4, True).excess(result) == pytest.approx(-0.25)
    assert Limit("macs", 100.0, False).excess(result) == pytest.approx(0.5)
    assert Limit("macs", 100.0, False).share({"macs": 500.0}) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"mac": 0.5}, r"budget: 'mac' is nothing that is measured; did you mean 'macs'"),
        ({"macs": 0}, r"budget: macs: expected a share in \(0, 1\) .* got 0"),
        ({"macs": "2ms"}, r"budget: macs: .*units k, M, G.* got '2ms'"),
        ({"latency": 2}, r"budget: latency: .*units s, ms, us, µs.* got 2"),
        ({"size": "big"}, r"budget: size: .* got 'big'"),
        (0.5, r"budget: expected a dict such as .* got 0.5"),
    ],
)
def test_a_wrong_budget_says_what_is_expected(budget: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits_of(budget)
