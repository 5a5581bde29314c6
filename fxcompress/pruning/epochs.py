"""``EpochPruner``: the base of schedules that run from ``start_epoch`` to ``end_epoch``.

With ``t0 = start_epoch``, ``Δt = frequency`` and ``t0 + nΔt = end_epoch``, masks are chosen at the epochs
``t0 + kΔt`` and hold in between. Before ``t0`` nothing is masked; from ``end_epoch`` on the goal is, exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from fxcompress.config.settings import AMOUNTS, PruningSettings
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.pruning.scheduled import ScheduledPruner, decimal


class EpochPruner(ScheduledPruner, ABC):
    """Moves by the epoch. Config keys: ``final_sparsity`` (or ``sparsity``, ``total_sparsity``) and
    ``end_epoch``; by default ``initial_sparsity`` is 0, ``start_epoch`` 0 and ``frequency`` 1.

    Whenever the schedule of one layer moves, all masks are chosen anew. Where ``frequency`` does not divide
    the epochs, the last step is the shorter.
    """

    schedule_keys: ClassVar[frozenset[str]] = frozenset(
        ("initial_sparsity", "final_sparsity", "start_epoch", "end_epoch", "frequency")
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        """As the base's.

        Raises:
            ConfigError: also if a layer gets no ``end_epoch``.
        """
        super().__init__(*args, **options)
        for name, goal in self.goals.items():
            if goal.end_epoch is None:
                entry = next(goal.sources[key] for key in AMOUNTS if key in goal.sources)
                raise ConfigError(
                    f"config_list[{entry}]: end_epoch: expected the epoch at which {name!r} reaches its "
                    f"final sparsity for {type(self).__name__}, got none; add for example 'end_epoch': 10"
                )
        self.begun: int | None = None
        """The epoch that ``update_epoch`` was last told, ``None`` before the first."""

    @abstractmethod
    def between(self, initial: float, final: float, progress: float) -> float:
        """The sparsity at ``progress`` (in [0, 1)) of the way from ``start_epoch`` to ``end_epoch``."""

    def amount(self, goal: PruningSettings) -> float:
        """The sparsity at the last epoch ``t0 + kΔt`` that has begun."""
        epoch, final, end = self._moment(goal), goal.goal or 0.0, goal.end_epoch
        if epoch is None or end is None:
            return 0.0
        if epoch == end:
            return final
        progress = (epoch - goal.start_epoch) / (end - goal.start_epoch)
        return decimal(self.between(goal.initial_sparsity, final, progress))

    def update_epoch(self, epoch: int) -> None:
        """Tell the pruner that epoch number ``epoch`` (from 0) begins; masks may change now.

        Epochs may be skipped and repeated: after any call the masks are those chosen for the last epoch
        ``t0 + kΔt`` up to it.

        Raises:
            FxcompressError: if an earlier epoch than before is given.
        """
        self._bound("update_epoch")
        if self.begun is not None and epoch < self.begun:
            raise FxcompressError(
                f"update_epoch: expected epoch {self.begun} or a later one, got {epoch}; epochs are given in "
                "order, and load_state_dict goes back to a checkpoint"
            )
        before = self._moments()
        super().update_epoch(epoch)
        self.begun = epoch
        if self._moments() != before:
            self.move()

    def move(self) -> None:
        """The schedule has moved: choose the masks of this epoch."""
        self.update_mask()

    def _moments(self) -> dict[str, int | None]:
        return {name: self._moment(goal) for name, goal in self.goals.items()}

    def _moment(self, goal: PruningSettings) -> int | None:
        """The last epoch up to now at which the layer's masks change, ``None`` before the first."""
        if self.begun is None or self.begun < goal.start_epoch:
            return None
        if goal.end_epoch is not None and self.begun >= goal.end_epoch:
            return goal.end_epoch
        return self.begun - (self.begun - goal.start_epoch) % goal.frequency

    def state_dict(self) -> dict[str, Any]:
        """The base's, and the last epoch that has begun."""
        return super().state_dict() | {"begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, see ``ScheduledPruner``."""
        super().load_state_dict(state)
        self.begun = state["begun"]
