"""Lottery tickets: prune what was trained, go back to where training began, train again (Frankle & Carbin,
The Lottery Ticket Hypothesis, ICLR 2019).

    pruner = LotteryTicketPruner(model, [{"sparsity": 0.8, "prune_iterations": 5, "op_types": ["Linear"]}],
                                 optimizer, lr_scheduler=scheduler)
    model = pruner.compress()
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        ...                                  # train as long as a whole training takes
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fxcompress.config.settings import AMOUNTS, PruningSettings
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.pruning.scheduled import ScheduledPruner, decimal


@final
class LotteryTicketPruner(ScheduledPruner):
    """Round ``k`` of ``n`` masks ``1 − (1 − s)^(k/n)``, the same share of what is left in every round; what
    is masked stays so.

    Config keys: ``prune_iterations`` (``n``, one for all layers) beside ``sparsity`` or ``total_sparsity``.

    Args:
        lr_scheduler: rewound with the weights.
        reset_weights: rewind parameters, buffers, ``optimizer`` and ``lr_scheduler`` at every round, in
            place, to what they were at ``compress()``; otherwise train on (gradual magnitude pruning).
    """

    name: ClassVar[str] = "lottery_ticket"
    schedule_keys: ClassVar[frozenset[str]] = frozenset(("final_sparsity", "prune_iterations"))
    keep_pruned: ClassVar[bool] = True

    def __init__(
        self, *args: Any, lr_scheduler: Any = None, reset_weights: bool = True, **options: Any
    ) -> None:
        """As the base's.

        Raises:
            ConfigError: also if a layer gets no ``prune_iterations``, or layers get different ones.
        """
        super().__init__(*args, **options)
        self.lr_scheduler = lr_scheduler
        self.reset_weights = reset_weights
        self.round = -1
        """The round that has begun, -1 before the first."""
        self._first: dict[str, Any] = {}
        rounds = {name: goal.prune_iterations for name, goal in self.goals.items()}
        for name, goal in self.goals.items():
            if goal.prune_iterations is None:
                entry = next(goal.sources[key] for key in AMOUNTS if key in goal.sources)
                raise ConfigError(
                    f"config_list[{entry}]: prune_iterations: expected in how many rounds {name!r} reaches "
                    "its sparsity, got none; add for example 'prune_iterations': 5"
                )
        if len(set(rounds.values())) > 1:
            got = ", ".join(f"{count} for {name!r}" for name, count in rounds.items())
            raise ConfigError(
                f"prune_iterations: expected one number for all layers, got {got}; every round rewinds the "
                "whole model: give all entries the same"
            )
        self.rounds = next(iter(rounds.values())) or 0

    def amount(self, goal: PruningSettings) -> float:
        """``1 − (1 − s)^(k/n)``."""
        final = goal.goal or 0.0
        if self.round >= self.rounds:
            return final
        return decimal(1 - (1 - final) ** (max(self.round, 0) / self.rounds))

    def bind(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Keep a copy of everything a round rewinds."""
        super().bind(module, settings)
        if not self.reset_weights:
            return
        named = (*module.named_parameters(), *module.named_buffers())
        self._first = {
            "tensors": {name: tensor.detach().clone() for name, tensor in named},
            "optimizer": _state(self.optimizer),
            "lr_scheduler": _state(self.lr_scheduler),
        }

    def get_prune_iterations(self) -> Iterator[int]:
        """The rounds still to come: round 0, which prunes nothing, to round ``n``."""
        yield from range(self.round + 1, self.rounds + 1)

    def prune_iteration_start(self) -> None:
        """Begin the next round: prune by the weights trained so far, then rewind.

        Raises:
            FxcompressError: after the last round.
        """
        self._bound("prune_iteration_start")
        if self.round >= self.rounds:
            raise FxcompressError(
                f"prune_iteration_start: all {self.rounds} rounds are done; loop over get_prune_iterations()"
            )
        self.round += 1
        if self.round:
            self.update_mask()
            self._rewind()

    @torch.no_grad()
    def _rewind(self) -> None:
        if not self.reset_weights:
            return
        module = self._bound("prune_iteration_start")
        tensors: dict[str, Tensor] = self._first["tensors"]
        for name, value in tensors.items():
            get_tensor(module, name).copy_(value)
        for owner, state in (
            (self.optimizer, self._first["optimizer"]),
            (self.lr_scheduler, self._first["lr_scheduler"]),
        ):
            if owner is not None and state is not None:
                owner.load_state_dict(copy.deepcopy(state))

    def state_dict(self) -> dict[str, Any]:
        """The base's, the round, and what the next one goes back to."""
        return super().state_dict() | {"round": self.round, "first": self._first}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, see ``ScheduledPruner``."""
        super().load_state_dict(state)
        self.round, self._first = int(state["round"]), dict(state["first"])


def _state(owner: Any) -> Any:
    return None if owner is None else copy.deepcopy(owner.state_dict())
