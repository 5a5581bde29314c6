"""Iterative pruning: smaller layers after every round, not masks (Molchanov et al., Pruning Convolutional
Neural Networks for Resource Efficient Inference, ICLR 2017, prune and fine-tune in turns).

    pruner = IterativePruner(model, [{"sparsity": 0.5, "end_epoch": 8, "frequency": 2}], optimizer)
    model = pruner.compress()
    for epoch in range(10):
        model = pruner.advance(epoch)        # at epochs 2, 4, 6 and 8 a smaller module
        for batch in batches:
            ...                              # the same optimizer trains it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, final

from fxcompress.errors import ConfigError
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning.carry import carry_optimizer
from fxcompress.pruning.epochs import EpochPruner
from fxcompress.pruning.granularity import is_elementwise
from fxcompress.pruning.scoring import ScoringPruner


@final
class IterativePruner(EpochPruner):
    """At epoch ``t = t0 + kΔt`` a layer that had ``n`` channels (units of them that go together) when it was
    compressed has lost ``floor(s_t · n)``, ``s_t = s_i + (s_f − s_i)(t − t0)/(nΔt)``: chosen, removed by
    ``speedup``, and the optimizer's state carried over to the smaller parameters.

    ``sparsity`` only, and criteria of whole output channels (``l1`` by default).

    Args:
        verify: compare every smaller module with the masked one, see ``fxcompress.speedup``.
    """

    name: ClassVar[str] = "iterative"
    criterion: ClassVar[str] = "l1"

    def __init__(self, *args: Any, verify: bool = True, **options: Any) -> None:
        """As the base's.

        Raises:
            ConfigError: also for ``total_sparsity``, single weights, or layers chosen alone.
        """
        super().__init__(*args, **options)
        self.verify = verify
        if not self.dependency_aware:
            raise ConfigError(
                "dependency_aware: expected True, got False; IterativePruner removes what it masks, and "
                "coupled channels go together: leave it out"
            )
        for name, goal in self.goals.items():
            if goal.total_sparsity is not None:
                raise ConfigError(
                    f"config_list[{goal.sources['total_sparsity']}]: total_sparsity: IterativePruner counts "
                    "the channels each layer had at first; use sparsity"
                )
            criterion = self.criteria[goal.pruner]
            given = goal.granularity
            if isinstance(criterion, ScoringPruner) and given == "default":
                given = criterion.granularity
            if not isinstance(criterion, ScoringPruner) or is_elementwise(given):
                raise ConfigError(
                    f"{name}: IterativePruner removes whole output channels, got pruner {goal.pruner!r} with "
                    f"granularity {given!r}; choose for example 'pruner': 'l1'"
                )

    def between(self, initial: float, final: float, progress: float) -> float:
        """The line."""
        return initial + (final - initial) * progress

    def advance(self, epoch: int) -> CompiledModule:
        """``update_epoch(epoch)``; returns the module to train from now on."""
        self.update_epoch(epoch)
        return self._bound("advance")

    def move(self) -> None:
        """Choose, remove, and carry on with the smaller module; while the schedule stands at 0, nothing."""
        from fxcompress.compiler import speedup  # the compiler lies above the algorithms

        if not any(map(self.amount, self.goals.values())):
            return
        self.update_mask()
        masked = self._bound("update_epoch")
        small = speedup(masked, verify=self.verify)
        if self.optimizer is not None:
            carry_optimizer(self.optimizer, masked, small)
        for criterion in self._ranked():
            criterion.lost = dict(Counter(criterion.lost) + Counter(criterion.removed))
            criterion.removed = {}
        self._grown = []
        there = dict(small.named_modules())
        self.bind(small, {name: s for name, s in self.settings.items() if name in there})

    def _ranked(self) -> list[ScoringPruner]:
        return [criterion for criterion in self.criteria.values() if isinstance(criterion, ScoringPruner)]

    def state_dict(self) -> dict[str, Any]:
        """The base's, and how many channels are gone.

        Save the module beside it with ``fxcompress.save``: its layers are smaller than the model's. To go on,
        make the pruner with the loaded module.
        """
        gone = {
            name: [[list(layers), count] for layers, count in criterion.lost.items()]
            for name, criterion in self.criteria.items()
            if isinstance(criterion, ScoringPruner)
        }
        return super().state_dict() | {"lost": gone}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: call after ``compress()`` of the module that was saved with it."""
        super().load_state_dict(state)
        for name, gone in state["lost"].items():
            self._ranking(name).lost = {tuple(layers): int(count) for layers, count in gone}
