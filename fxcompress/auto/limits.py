"""Budgets: what the model that comes out may cost.

A limit is a share of the dense model's cost, ``0.35`` or ``"35%"``, or an amount: ``1_000_000``, ``"1.2M"``
(MACs, parameters), ``"200kB"`` (file), ``"2ms"`` (latency).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fxcompress.errors import ConfigError, did_you_mean

COSTS = MappingProxyType(
    {
        "macs": "multiply-accumulates per example",
        "parameters": "parameters",
        "size": "bytes of the ONNX file",
        "latency": "seconds in onnxruntime",
        "latency_torch": "seconds in PyTorch",
    }
)
"""What is measured of an artefact, with its unit."""

COUNTED = ("macs", "parameters")
"""Costs that are known before anything is trained."""

_AMOUNT = re.compile(r"\s*([0-9.eE+-]+)\s*([a-zA-Zµ%]*)\s*")
_COUNT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS = {
    "macs": _COUNT,
    "parameters": _COUNT,
    "size": {"": 1.0, "B": 1.0, "kB": 1e3, "KB": 1e3, "KiB": 1024.0, "MB": 1e6, "MiB": 1024.0**2, "GB": 1e9},
    "latency": _TIME,
    "latency_torch": _TIME,
}


@dataclass(frozen=True)
class Limit:
    """At most ``amount`` of a cost: a share of the dense model's if ``relative``."""

    kind: str
    amount: float
    relative: bool

    def excess(self, result: Mapping[str, Any]) -> float:
        """By which share a trial's result is above the limit; 0 or less fits."""
        return float(result["shares" if self.relative else "measured"][self.kind]) / self.amount - 1

    def share(self, dense: Mapping[str, float]) -> float:
        """The limit as a share of the dense model's cost."""
        return self.amount if self.relative else self.amount / dense[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} ≤ {self.amount:.4g}" + " of the dense model's" * self.relative


def limits_of(budget: Mapping[str, Any] | None) -> tuple[Limit, ...]:
    """The limits in a budget such as ``{"macs": 0.35, "latency": "2ms"}``.

    Raises:
        ConfigError: naming the key, what was expected and what was given.
    """
    if budget is not None and not isinstance(budget, Mapping):
        raise ConfigError(f"budget: expected a dict such as {{'macs': 0.35}}, got {budget!r}")
    return tuple(_limit(kind, value) for kind, value in (budget or {}).items())


def cost_named(kind: str, where: str) -> str:
    """``kind``, if it is a cost.

    Raises:
        ConfigError: if it is none.
    """
    if kind not in COSTS:
        hint = did_you_mean(str(kind), COSTS) or f"; expected one of {', '.join(COSTS)}"
        raise ConfigError(f"{where}: {kind!r} is nothing that is measured{hint}")
    return kind


def _limit(kind: str, value: Any) -> Limit:
    units = _UNITS[cost_named(kind, "budget")]
    match = _AMOUNT.fullmatch(str(value))
    try:
        number = float(match[1]) if match else 0.0
    except ValueError:
        number = 0.0
    unit = match[2] if match else ""
    if number > 0 and unit == "%":
        return Limit(kind, number / 100, True)
    if 0 < number < 1 and not unit:
        return Limit(kind, number, True)
    if number > 0 and unit in units:
        return Limit(kind, number * units[unit], False)
    amounts = ", ".join(f"{x}" for x in units if x) or "none"
    raise ConfigError(
        f"budget: {kind}: expected a share in (0, 1) such as 0.35, or an amount of {COSTS[kind]} "
        f"(units {amounts}), got {value!r}"
    )
