"""``ScheduledPruner``: the base of schedules, which say when and how much a criterion prunes.

    AGPPruner(model, [{"sparsity": 0.8, "end_epoch": 10, "op_types": ["Linear"]}], optimizer)
        = at some epochs: LevelPruner with the sparsity of that moment, masks chosen anew

A config entry may name the criterion of its layers (``"pruner": "l1"``); ``pruning_algorithm`` is that of
the others. A criterion that measures activations or gradients needs ``data``, and measures again whenever
masks are chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from fxcompress.config import Selection
from fxcompress.config.settings import PruningSettings
from fxcompress.errors import ConfigError, did_you_mean
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_masks import mask_names, read_masks, reset_masks, write_masks
from fxcompress.pruning.base import Pruner
from fxcompress.pruning.measuring import MeasuringPruner
from fxcompress.pruning.registry import PRUNERS
from fxcompress.pruning.scoring import Choice, ScoringPruner


class ScheduledPruner(Pruner, ABC):
    """Drives criteria: a subclass says which share is masked at the moment (``amount``) and when to look."""

    criterion: ClassVar[str] = "level"
    """The criterion of entries that name none, where ``pruning_algorithm`` does not say otherwise."""
    keep_pruned: ClassVar[bool] = False
    """Whether what is masked once stays masked."""

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        *args: Any,
        pruning_algorithm: str | None = None,
        **options: Any,
    ) -> None:
        """As the base's; ``data`` and ``loss_fn`` go to the criteria.

        Args:
            model: see ``Pruner``.
            config_list: see ``Pruner``; ``pruner`` names the criterion of an entry's layers.
            pruning_algorithm: name of the criterion for entries that name none.

        Raises:
            ConfigError: naming the entry, the key, what was expected and what was given.
        """
        name = self.criterion if pruning_algorithm is None else pruning_algorithm
        if name not in PRUNERS:
            hint = did_you_mean(str(name), PRUNERS) or f"; known are {', '.join(sorted(PRUNERS))}"
            raise ConfigError(f"pruning_algorithm: expected the name of a criterion, got {name!r}{hint}")
        if not isinstance(config_list, Selection):
            config_list = self._select(model, config_list, name, PRUNERS[name].op_types)
        super().__init__(model, config_list, *args, **options)
        self.goals: dict[str, PruningSettings] = dict(self.selection.pruning)
        self.criteria: dict[str, Pruner] = {
            pruner: self._criterion(pruner)
            for pruner in dict.fromkeys(goal.pruner for goal in self.goals.values())
        }
        self._grown: list[dict[str, Choice]] = []

    def _criterion(self, name: str) -> Pruner:
        criterion = PRUNERS[name](
            self.model, self.selection, dependency_aware=self.dependency_aware,
            data=self.data, loss_fn=self.loss_fn,
        )  # fmt: skip
        if isinstance(criterion, ScoringPruner):
            criterion.keep_pruned = self.keep_pruned
        elif self.keep_pruned:
            raise ConfigError(
                f"pruner {name!r}: {type(self).__name__} needs a criterion that ranks (a ScoringPruner), so "
                "that what is masked stays masked; choose another one"
            )
        return criterion

    @abstractmethod
    def amount(self, goal: PruningSettings) -> float:
        """The share to mask now of a layer (or group of layers) that is to lose ``goal.goal`` in the end.

        ``decimal`` of what a formula gives.
        """

    def bind(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Work on ``module``, and let the criteria do so."""
        super().bind(module, settings)
        self._bind_criteria(module)

    def _bind_criteria(self, module: CompiledModule) -> None:
        for name, criterion in self.criteria.items():
            criterion.bind(module, {n: s for n, s in self.settings.items() if s.pruner == name})

    def choose(self) -> None:
        """Let every criterion choose at the amount of the moment; nothing is masked where that is 0."""
        module = self._bound("choose")
        before = mask_names(module)
        self._choose({name: self.amount(goal) for name, goal in self.settings.items()})
        if mask_names(module) != before:
            self._grown.append(
                {
                    name: criterion.choice
                    for name, criterion in self.criteria.items()
                    if isinstance(criterion, ScoringPruner) and criterion.choice is not None
                }
            )

    def _choose(self, amounts: Mapping[str, float]) -> None:
        for name, criterion in self.criteria.items():
            now = {n: s.at(amounts[n]) for n, s in self.settings.items() if s.pruner == name}
            if any(settings.goal for settings in now.values()):
                criterion.configure(now)
                if isinstance(criterion, MeasuringPruner):
                    criterion.forget()
                criterion.choose()

    def state_dict(self) -> dict[str, Any]:
        """The base's, the masks, and which choices gave the graph the mask nodes that it has.

        Tensors, numbers, strings, lists and dicts only: ``torch.load(weights_only=True)`` reads it.
        """
        masks = {} if self.bound_model is None else read_masks(self.bound_model)
        choices = {
            name: _plain(criterion.choice)
            for name, criterion in self.criteria.items()
            if self.keep_pruned and isinstance(criterion, ScoringPruner) and criterion.choice is not None
        }
        return super().state_dict() | {
            "masks": {name: mask.bool() for name, mask in masks.items()},
            "choices": choices,
            "grown": [{name: _plain(choice) for name, choice in moment.items()} for moment in self._grown],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: call after ``compress()`` and before loading the model's state, which then
        finds all its masks.
        """
        super().load_state_dict(state)
        module = self._bound("load_state_dict")
        self._grown = []
        for moment in state["grown"]:
            reset_masks(module)
            grown = {name: Choice(**choice) for name, choice in moment.items()}
            for name, choice in grown.items():
                self._ranking(name).restore(choice)
            self._grown.append(grown)
        for name, given in state["choices"].items():
            self._ranking(name).choice = Choice(**given)
        write_masks(module, state["masks"])

    def _ranking(self, name: str) -> ScoringPruner:
        criterion = self.criteria.get(name)
        if not isinstance(criterion, ScoringPruner):
            known = ", ".join(map(repr, self.criteria))
            raise ConfigError(
                f"load_state_dict: the checkpoint is of criterion {name!r}, the config list names {known}; "
                "use the config list that it was made with"
            )
        return criterion


def decimal(amount: float) -> float:
    """The number that a formula means: ``0.8 + (0.2 − 0.8)`` is 0.2, or ``floor(s · n)`` is one too low."""
    return round(amount, 12)


def _plain(choice: Choice) -> dict[str, Any]:
    """A choice as tensors in dicts, masks in a byte per entry."""

    def small(masks: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mask.bool() for name, mask in masks.items()}

    return {"units": small(choice.units), "weights": small(choice.weights), "rows": small(choice.rows)}
