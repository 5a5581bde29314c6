"""allocate: against brute force, its bound, and what cannot be met."""

from __future__ import annotations

import itertools
import random

import pytest

from fxcompress.errors import FxcompressError
from fxcompress.quantization.bit_allocation import Choice, allocate


def problem(seed: int, tensors: int = 4) -> list[list[Choice]]:
    """Tensors of random sizes at 2, 4 and 8 bits; four times the noise per bit less, more or less."""
    draw = random.Random(seed)
    found = []
    for _ in range(tensors):
        size, noise = draw.randint(1, 50), draw.random()
        found.append([Choice(size * b, noise * 4.0**-b * draw.uniform(0.5, 2)) for b in (8, 4, 2)])
    return found


def best(choices: list[list[Choice]], budget: float) -> float:
    """The least noise, by trying everything."""
    every = itertools.product(*choices)
    return min(sum(c.noise for c in of) for of in every if sum(c.cost for c in of) <= budget)


def range_of(choices: list[list[Choice]]) -> tuple[float, float]:
    return sum(min(c.cost for c in of) for of in choices), sum(max(c.cost for c in of) for of in choices)


def test_by_hand() -> None:
    """Per byte the first tensor saves 4/10, the second 3/5: it goes first, and the first no longer fits."""
    choices = [[Choice(20, 1), Choice(10, 5)], [Choice(10, 1), Choice(5, 4)]]
    found = allocate(choices, 24)
    assert (found.chosen, found.cost, found.noise) == ((1, 0), 20, 6)
    assert found.bound == pytest.approx(9 - 3 - 4 * 4 / 10)  # the rest of the budget takes 4/10 of the step


def test_what_is_left_is_spent_on_what_still_fits() -> None:
    """The step that saves most does not fit behind the first; a smaller one does."""
    choices = [[Choice(10, 0), Choice(1, 100)], [Choice(20, 0), Choice(1, 50)], [Choice(3, 0), Choice(1, 1)]]
    assert allocate(choices, 15).chosen == (0, 1, 0)


def test_a_choice_that_costs_more_and_is_noisier_is_never_taken() -> None:
    assert allocate([[Choice(8, 3), Choice(4, 1), Choice(2, 2)]], 100).chosen == (1,)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_brute_force_is_at_most_one_step_better_and_usually_the_same(share: float) -> None:
    same = 0
    for seed in range(100):
        choices = problem(seed)
        low, high = range_of(choices)
        budget = low + share * (high - low)
        found = allocate(choices, budget)
        assert found.cost <= budget
        optimum = best(choices, budget)
        assert found.bound <= optimum * (1 + 1e-12)
        assert optimum <= found.noise * (1 + 1e-12)
        step = max(a.noise - b.noise for of in choices for a in of for b in of)
        assert found.noise - found.bound < step
        same += found.noise <= optimum * (1 + 1e-12)
    assert same >= 75  # of 100


def test_a_budget_that_the_steps_use_up_is_solved_exactly() -> None:
    """Then the relaxed problem takes whole steps only: no gap is left between the result and the bound."""
    exact = 0
    for seed in range(50):
        choices = problem(seed)
        low, high = range_of(choices)
        budget = allocate(choices, low + (high - low) / 2).cost
        found = allocate(choices, budget)
        if found.bound == pytest.approx(found.noise, rel=1e-12):
            assert found.noise == pytest.approx(best(choices, budget), rel=1e-12)
            exact += 1
    assert exact >= 20
    everything = allocate(problem(0), 10_000)
    assert everything.noise == pytest.approx(everything.bound, rel=1e-12)
    assert everything.noise == pytest.approx(best(problem(0), 10_000), rel=1e-12)


def test_a_budget_below_the_cheapest_choices_says_what_they_cost() -> None:
    with pytest.raises(FxcompressError, match="budget 10: the cheapest choices cost 15"):
        allocate([[Choice(10, 1)], [Choice(5, 1), Choice(8, 0)]], 10)
