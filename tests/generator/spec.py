"""What a random network is before it is code: a few integers that always mean *some* network.

Every field is interpreted modulo what is possible where it is read, so each specification is valid, dropping
any step or lowering any number gives another valid one, and zeros mean the plainest choice. That is what
lets Hypothesis (and `tests.generator.reduction`, which works without it) shrink failures well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.generator.registry import weighted_names

KNOBS_PER_STEP = 10
KNOB_TOP = 119  # knobs are in [0, 119]: 120 is divisible by 2, 3, 4, 5, 6, 8, so choices are uniform
LEAST_STEPS, MOST_STEPS = 2, 14
SOURCES = (0, 0, 0, 0, 0, 1, 1, 2, 3, 5)  # how many values back a step reads; mostly the newest


@dataclass(frozen=True)
class Step:
    """One step: kind name, how many values back its operand lies, and the knobs its choices are read from."""

    kind: str
    source: int = 0
    knobs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A whole network: knobs for inputs and stem, the steps, knobs for head and outputs."""

    start: tuple[int, ...]
    steps: tuple[Step, ...]
    head: tuple[int, ...]


def random_spec(rng: random.Random) -> Spec:
    """A specification drawn from `rng`, distributed like `specs()` before any shrinking."""
    names = weighted_names()

    def knobs() -> tuple[int, ...]:
        return tuple(rng.randint(0, KNOB_TOP) for _ in range(KNOBS_PER_STEP))

    count = rng.randint(LEAST_STEPS, MOST_STEPS)
    steps = tuple(Step(rng.choice(names), rng.choice(SOURCES), knobs()) for _ in range(count))
    return Spec(knobs(), steps, knobs())


def specs() -> st.SearchStrategy[Spec]:
    """Hypothesis strategy of specifications; shrinks to few steps with all knobs zero."""
    knobs = st.tuples(*[st.integers(0, KNOB_TOP)] * KNOBS_PER_STEP)
    steps = st.builds(Step, st.sampled_from(weighted_names()), st.sampled_from(SOURCES), knobs)
    # min_size 0: shrinking may go below the usual depth down to a bare stem.
    chain = st.lists(steps, min_size=LEAST_STEPS, max_size=MOST_STEPS) | st.lists(steps, max_size=LEAST_STEPS)
    return st.builds(Spec, knobs, chain.map(tuple), knobs)
