"""What a random network is before it is code: a few integers that always mean *some* network.

Every field is interpreted modulo what is possible where it is read, so each specification is valid, dropping
any step or lowering any number gives another valid one, and zeros mean the plainest choice. That is what
lets Hypothesis (and `tests.generator.reduction`, which works without it) shrink failures well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.generator.registry import MAPS, TOKENS, weighted_names

KNOBS_PER_STEP = 14
KNOB_TOP = 119  # knobs are in [0, 119]: 120 is divisible by 2, 3, 4, 5, 6, 8, so choices are uniform
LEAST_STEPS, MOST_STEPS = 2, 14
# The layouts that successive parts of a network work on: a convnet, a transformer, a hybrid.
RUNS = (
    (MAPS,), (TOKENS,), (MAPS,), (TOKENS,), (MAPS, TOKENS), (MAPS, TOKENS, MAPS), (TOKENS, MAPS), (TOKENS,)
)  # fmt: skip
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

    def knobs() -> tuple[int, ...]:
        return tuple(rng.randint(0, KNOB_TOP) for _ in range(KNOBS_PER_STEP))

    runs, count = rng.choice(RUNS), rng.randint(LEAST_STEPS, MOST_STEPS)
    names = [weighted_names(runs[i * len(runs) // count]) for i in range(count)]
    steps = tuple(Step(rng.choice(each), rng.choice(SOURCES), knobs()) for each in names)
    return Spec(knobs(), steps, knobs())


def specs() -> st.SearchStrategy[Spec]:
    """Hypothesis strategy of specifications; shrinks to few steps with all knobs zero."""
    knobs = st.tuples(*[st.integers(0, KNOB_TOP)] * KNOBS_PER_STEP)

    def run(layout: str, least: int, most: int) -> st.SearchStrategy[list[Step]]:
        steps = st.builds(Step, st.sampled_from(weighted_names(layout)), st.sampled_from(SOURCES), knobs)
        # The least may be undercut: shrinking may go below the usual depth down to a bare stem.
        return st.lists(steps, min_size=least, max_size=most) | st.lists(steps, max_size=least)

    def chain(runs: tuple[str, ...]) -> st.SearchStrategy[tuple[Step, ...]]:
        parts = [run(layout, LEAST_STEPS // len(runs), MOST_STEPS // len(runs)) for layout in runs]
        return st.tuples(*parts).map(lambda lists: tuple(item for part in lists for item in part))

    return st.builds(Spec, knobs, st.sampled_from(RUNS).flatmap(chain), knobs)
