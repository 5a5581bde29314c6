"""Bit allocation: how many bits each tensor gets, so that the least noise is left within a budget.

    minimize  Σᵢ noise(i, cᵢ)    subject to    Σᵢ cost(i, cᵢ) ≤ budget

over one choice cᵢ for each tensor: the multiple-choice knapsack problem. Noises add up as roundings are
independent. Steps along the lower convex hulls of the choices are taken in order of noise saved per cost
(Sinha, Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 1979; Shoham, Gersho, Efficient
Bit Allocation for an Arbitrary Set of Quantizers, IEEE TASSP 1988); what then is left of the budget goes to
the single choices that save most. ``O(n log n)``. The result misses the optimum by less than one step;
``bound`` says by how much at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fxcompress.errors import FxcompressError


@dataclass(frozen=True)
class Choice:
    """What a tensor costs, and what noise its rounding makes: finite numbers, not negative."""

    cost: float
    noise: float


@dataclass(frozen=True)
class Allocation:
    """``chosen``: for each tensor the index of its choice; ``bound``: no allocation has less noise."""

    chosen: tuple[int, ...]
    cost: float
    noise: float
    bound: float


@dataclass(frozen=True)
class _Step:
    """From one corner of a hull to the next, which costs more."""

    tensor: int
    to: int
    cost: float
    saved: float

    @property
    def worth(self) -> float:
        return self.saved / self.cost


def allocate(choices: Sequence[Sequence[Choice]], budget: float) -> Allocation:
    """Choose for each tensor.

    Args:
        choices: for each tensor at least one.
        budget: of the sum of the costs.

    Raises:
        FxcompressError: if the cheapest choices cost more.
    """
    hulls = [_hull(of) for of in choices]
    chosen = [hull[0] for hull in hulls]
    cost = sum(of[i].cost for of, i in zip(choices, chosen, strict=True))
    if cost > budget:
        raise FxcompressError(f"budget {budget:,}: the cheapest choices cost {cost:,}")
    bound = sum(of[i].noise for of, i in zip(choices, chosen, strict=True))
    closed: set[int] = set()
    for step in sorted(_steps(choices, hulls), key=lambda s: s.worth, reverse=True):
        fits = cost + step.cost <= budget
        if not closed:  # the optimum of the relaxed problem, which may take part of a step
            bound -= step.saved if fits else step.worth * (budget - cost)
        if fits and step.tensor not in closed:
            chosen[step.tensor] = step.to
            cost += step.cost
        else:
            closed.add(step.tensor)
    chosen = _filled(choices, chosen, budget - cost)
    taken = [of[i] for of, i in zip(choices, chosen, strict=True)]
    noise = sum(c.noise for c in taken)
    return Allocation(tuple(chosen), sum(c.cost for c in taken), noise, min(bound, noise))


def _hull(choices: Sequence[Choice]) -> list[int]:
    """The corners of the lower convex hull, from the cheapest choice on; each saves less per cost."""
    hull: list[int] = []
    for index in sorted(range(len(choices)), key=lambda i: (choices[i].cost, choices[i].noise)):
        here = choices[index]
        if hull and here.noise >= choices[hull[-1]].noise:
            continue
        while len(hull) > 1 and _slope(choices[hull[-2]], choices[hull[-1]]) <= _slope(
            choices[hull[-1]], here
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(cheap: Choice, dear: Choice) -> float:
    """Noise saved per cost."""
    return (cheap.noise - dear.noise) / (dear.cost - cheap.cost)


def _steps(choices: Sequence[Sequence[Choice]], hulls: Sequence[Sequence[int]]) -> list[_Step]:
    found = []
    for tensor, (of, hull) in enumerate(zip(choices, hulls, strict=True)):
        for before, after in pairwise(hull):
            cost, saved = of[after].cost - of[before].cost, of[before].noise - of[after].noise
            found.append(_Step(tensor, after, cost, saved))
    return found


def _filled(choices: Sequence[Sequence[Choice]], chosen: Sequence[int], left: float) -> list[int]:
    """Spend what is ``left`` of the budget on choices that are less noisy, those that save most first."""
    filled = list(chosen)

    def saved(tensor: int, choice: int) -> float:
        return choices[tensor][filled[tensor]].noise - choices[tensor][choice].noise

    pairs = [(t, c) for t, of in enumerate(choices) for c in range(len(of)) if saved(t, c) > 0]
    for tensor, choice in sorted(pairs, key=lambda pair: saved(*pair), reverse=True):
        more = choices[tensor][choice].cost - choices[tensor][filled[tensor]].cost
        if saved(tensor, choice) > 0 and more <= left:
            filled[tensor] = choice
            left -= more
    return filled
