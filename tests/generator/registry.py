"""Where operator families register the step kinds that random networks are made of.

A family is one module of this package; a step kind is one function decorated with `@step(weight)`. The
function receives the draft and the value to work on, writes lines through the draft and returns the value
(or values) later steps may use. Adding an operator to every law is adding a function; adding a family is
adding a file (`tests.generator` imports every module it finds).

A value is laid out as a map, [N, C, *space], or as tokens, [N, T, features]. A kind says which it reads
(`MAPS` unless told); a value of the other layout is converted before the step sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.generator.draft import Draft, Value

    StepFunction = Callable[[Draft, Value], "Value | tuple[Value, ...]"]


MAPS, TOKENS, ANY = "maps", "tokens", "any"


class Skip(Exception):
    """The step does not apply to this value (wrong rank, no partner, too small); nothing is emitted."""


@dataclass(frozen=True)
class StepKind:
    """One kind of step: its name, the family (module) it lives in, its relative frequency, its function.

    `reads` is the layout of the values it works on.
    """

    name: str
    family: str
    weight: int
    function: StepFunction
    reads: str


KINDS: dict[str, StepKind] = {}


def step(weight: int = 2, reads: str = MAPS) -> Callable[[StepFunction], StepFunction]:
    """Register the decorated function as a step kind drawn with relative frequency `weight`."""

    def register(function: StepFunction) -> StepFunction:
        name = function.__name__
        if name in KINDS:
            raise ValueError(f"step kind {name!r} is registered twice (second time in {function.__module__})")
        KINDS[name] = StepKind(name, function.__module__.rsplit(".", 1)[-1], weight, function, reads)
        return function

    return register


def require(condition: bool) -> None:
    """Give the step up (`Skip`) unless `condition` holds."""
    if not condition:
        raise Skip


def weighted_names(layout: str) -> list[str]:
    """Each kind's name that reads `layout`, repeated by its weight, the most common (and plainest) first."""
    fitting = [kind for kind in KINDS.values() if kind.reads in (layout, ANY)]
    kinds = sorted(fitting, key=lambda kind: (-kind.weight, kind.name))
    return [kind.name for kind in kinds for _ in range(kind.weight)]
