"""Random networks for the property tests.

`networks()` is the Hypothesis strategy, `random_network(seed)` the same distribution without Hypothesis.
Every module of this package is imported, so a new file with `@step` functions is a new operator family.
"""

from __future__ import annotations

import importlib
import pkgutil
import random

from hypothesis import strategies as st

from tests.generator.network import Network, render
from tests.generator.randomize import randomize
from tests.generator.registry import KINDS
from tests.generator.spec import Spec, random_spec, specs

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["KINDS", "Network", "Spec", "networks", "random_network", "randomize", "render"]


def networks() -> st.SearchStrategy[Network]:
    """Hypothesis strategy of `Network`."""
    return st.builds(render, specs(), st.integers(0, 2**16))


def random_network(seed: int) -> Network:
    """The network number `seed` of the same distribution, without Hypothesis."""
    return render(random_spec(random.Random(seed)), seed)
