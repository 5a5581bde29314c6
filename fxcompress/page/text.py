"""Figures as people read them: ``1.2 M``, ``45 kB``, ``0.31 ms``, ``64 → 32``, ``-75.0%``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Pair(Protocol):
    """An amount before and after."""

    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...


_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_PLAIN = 1e4
"""Smaller numbers have all their digits."""


def amount(value: float | None, unit: str = "") -> str:
    """A number of things, bytes (``unit="bytes"``), seconds (``"s"``) or a metric (``"metric"``)."""
    if value is None:
        return "–"
    if unit == "s":
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    if unit == "metric":
        return f"{value:.4g}"
    suffix = "B" if unit == "bytes" else ""
    for size, letter in _STEPS:
        if abs(value) >= size and abs(value) >= _PLAIN:
            return f"{float(f'{value / size:.3g}'):g} {letter}{suffix}"
    return f"{value:,g} {suffix}".strip()


def exact(value: float | None, unit: str = "") -> str:
    """All digits of a count; ``amount`` of anything else."""
    return f"{value:,}" if isinstance(value, int) and unit in ("", "bytes") else amount(value, unit)


def change(before: float | None, after: float | None, unit: str = "") -> str:
    """How much less, in percent of ``before``; the difference of a metric."""
    if before is None or after is None:
        return ""
    if unit == "metric":
        return f"{after - before:+.3g}"
    return f"{after / before - 1:+.1%}" if before else ""


def arrow(pair: Pair | None, unit: str = "") -> str:
    """``64 → 32``, ``1.2 → 0.6 M``, or the one text where both are equal."""
    if pair is None:
        return ""
    old, new = amount(pair.before, unit), amount(pair.after, unit)
    if old == new:
        return old
    number, _, suffix = old.partition(" ")
    return f"{number if suffix and new.endswith(suffix) else old} → {new}"


def choice(value: object) -> str:
    """What was chosen: a number to four digits, anything else as it is."""
    return amount(value, "metric") if isinstance(value, float) else str(value)


def shape(sizes: Sequence[int] | None) -> str:
    """``64×3×3×3``; a dash where there is no tensor."""
    return "–" if sizes is None else "×".join(map(str, sizes)) or "scalar"


def decibels(value: float | None) -> str:
    """One decimal; an infinite ratio is no noise at all."""
    if value is None:
        return "–"
    return f"{value:.1f}".replace("inf", "∞")


def shortened(name: str, length: int) -> str:
    """At most ``length`` characters: the middle goes, as names differ at their ends."""
    if len(name) <= length:
        return name
    tail = 2 * (length - 1) // 3
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
