"""How a search runs, whatever it searches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxcompress.auto.limits import Limit, cost_named
from fxcompress.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Options:
    """What ``search`` and experiments take besides what they search.

    Args:
        folder: where everything goes: study, files of trials, result. A search started again with the same
            folder (or ``storage`` and ``name``) goes on.
        trials: how many, those of earlier starts and other processes included.
        workers: processes that run trials at a time.
        time_limit: seconds after which a trial is given up.
        storage: a database URL, or the path of a journal file; by default an SQLite file in ``folder``.
        name: the study's.
        sampler: ``"tpe"`` or another of Optuna's by name (``random``, ``gp``, ``cmaes``, ``nsgaii``, …).
        sampler_options: its further arguments.
        pruner: ``"median"`` or another of Optuna's by name; gives up trials that report after epochs.
        pruner_options: its further arguments.
        seed: of sampler and trials. Processes that join a study draw numbers of their own.
        objectives: costs to minimize besides the metric: the Pareto front comes out.
        direction: ``"maximize"`` or ``"minimize"`` the metric.
        port: serve optuna-dashboard there, on the loopback address, while it runs.
        environment: variables of the worker processes.
        limits: the budget, see ``limits_of``.
    """

    folder: Path = Path("search")
    trials: int = 20
    workers: int = 1
    time_limit: float | None = None
    storage: str | None = None
    name: str = "search"
    sampler: str = "tpe"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    pruner: str | None = None
    pruner_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    objectives: tuple[str, ...] = ()
    direction: str = "maximize"
    port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: naming the option, what was expected and what was given.
        """
        object.__setattr__(self, "folder", Path(self.folder))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        for name in ("trials", "workers"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ConfigError(f"time_limit: expected seconds above 0 or None, got {self.time_limit!r}")
        if self.direction not in ("maximize", "minimize"):
            raise ConfigError(f"direction: expected 'maximize' or 'minimize', got {self.direction!r}")
        for kind in self.objectives:
            cost_named(kind, "objectives")
        if self.objectives and self.pruner:
            raise ConfigError(
                f"pruner: Optuna's pruners compare one objective, and {1 + len(self.objectives)} were given; "
                "leave out pruner or objectives"
            )

    @property
    def directions(self) -> dict[str, str]:
        """Of all objectives by name: the metric, then the costs."""
        return {"metric": self.direction, **dict.fromkeys(self.objectives, "minimize")}


def make_options(given: Mapping[str, Any]) -> Options:
    """``Options`` of these names.

    Raises:
        ConfigError: for an unknown name too.
    """
    known = [f.name for f in dataclasses.fields(Options)]
    wrong = next((name for name in given if name not in known), None)
    if wrong is not None:
        hint = did_you_mean(wrong, known) or f"; known are {', '.join(known)}"
        raise ConfigError(f"{wrong}: search has no such option{hint}")
    return Options(**given)
