"""Random networks for the property tests.

`networks()` is the Hypothesis strategy, `random_network(seed)` the same distribution without Hypothesis.
Every module of this package is imported, so a new file with `@step` functions is a new operator family.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from functools import partial

from hypothesis import strategies as st

from tests.generator.network import Network, render
from tests.generator.pruning import KNOBS, Pruning, random_pruning
from tests.generator.randomize import randomize
from tests.generator.registry import KINDS
from tests.generator.spec import KNOB_TOP, Spec, random_spec, specs

for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("test_")):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = [
    "KINDS",
    "Network",
    "Pruning",
    "Spec",
    "cases",
    "configs",
    "networks",
    "random_case",
    "random_network",
    "randomize",
    "render",
]


def networks() -> st.SearchStrategy[Network]:
    """Hypothesis strategy of `Network`."""
    return st.builds(render, specs(), st.integers(0, 2**16))


def configs(network: Network) -> st.SearchStrategy[Pruning]:
    """Hypothesis strategy of ways to prune `network`: config lists, or external masks."""
    return st.tuples(*[st.integers(0, KNOB_TOP)] * KNOBS).map(partial(random_pruning, network))


def cases() -> st.SearchStrategy[tuple[Network, Pruning]]:
    """Hypothesis strategy of a network together with a way to prune it."""
    return networks().flatmap(lambda network: st.tuples(st.just(network), configs(network)))


def random_network(seed: int) -> Network:
    """The network number `seed` of the same distribution, without Hypothesis."""
    return render(random_spec(random.Random(seed)), seed)


def random_case(seed: int) -> tuple[Network, Pruning]:
    """The network number `seed` with a way to prune it, without Hypothesis."""
    network, rng = random_network(seed), random.Random(seed + 1)
    return network, random_pruning(network, [rng.randint(0, KNOB_TOP) for _ in range(KNOBS)])
