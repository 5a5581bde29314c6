"""ADMM: training pulls the weights towards pruned ones before any is masked (Zhang et al., A Systematic DNN
Weight Pruning Framework using ADMM, ECCV 2018).

    pruner = ADMMPruner(model, [{"sparsity": 0.9, "op_types": ["Conv2d"]}], optimizer,
                        num_iterations=10, epochs_per_iteration=5, rho=1e-2)
    model = pruner.compress()
    for epoch in range(51):
        pruner.update_epoch(epoch)                        # every 5 epochs Z and U; at epoch 50 the masks
        for x, y in batches:
            loss = criterion(model(x), y) + pruner.regularizer()
            ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fxcompress.config.settings import PruningSettings
from fxcompress.errors import ConfigError
from fxcompress.graph.module import CompiledModule, set_tensor
from fxcompress.pruning.masks import get_masks
from fxcompress.pruning.scheduled import ScheduledPruner


@final
class ADMMPruner(ScheduledPruner):
    """Minimizes ``L(W) + ρ/2 · Σ ‖W − Z + U‖²`` in turns, ``Z`` being ``W + U`` pruned by the criterion:

        W: ``epochs_per_iteration`` epochs of training with ``loss + pruner.regularizer()``
        Z ← Π(W + U),    U ← U + W − Z        at ``update_epoch(k · epochs_per_iteration)``

    starting from ``Z = Π(W)``, ``U = 0``. After ``num_iterations`` of these the masks are chosen by ``W`` and
    stay; train on to recover. Nothing is masked before.

    Args:
        num_iterations: how often ``Z`` and ``U`` are updated.
        epochs_per_iteration: epochs of training between updates.
        rho: the weight ``ρ`` of the pull.
    """

    name: ClassVar[str] = "admm"

    def __init__(
        self,
        *args: Any,
        num_iterations: int = 10,
        epochs_per_iteration: int = 5,
        rho: float = 1e-2,
        **options: Any,
    ) -> None:
        """As the base's.

        Raises:
            ConfigError: also if an argument is not positive.
        """
        super().__init__(*args, **options)
        for key, value in (
            ("num_iterations", num_iterations), ("epochs_per_iteration", epochs_per_iteration), ("rho", rho),
        ):  # fmt: skip
            if not value > 0:
                raise ConfigError(f"{key}: expected a positive number, got {value!r}")
        self.num_iterations = num_iterations
        self.epochs_per_iteration = epochs_per_iteration
        self.rho = rho
        self.iteration = 0
        self.finished = False
        self.targets: dict[str, Tensor] = {}
        """Layer → ``Z``."""
        self.duals: dict[str, Tensor] = {}
        """Layer → ``U``."""

    def amount(self, goal: PruningSettings) -> float:
        """The goal, once all is done."""
        return (goal.goal or 0.0) if self.finished else 0.0

    def bind(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Set ``Z = Π(W)`` and ``U = 0``."""
        super().bind(module, settings)
        weights = {name: weight.detach().clone() for name, weight in self._weights().items()}
        self.targets = self._pruned(weights)
        self.duals = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def regularizer(self) -> Tensor:
        """``ρ/2 · Σ ‖W − Z + U‖²`` over the selected layers, a scalar with gradient; 0 at the end."""
        terms = [
            (w - (self.targets[name] - self.duals[name]).to(w.device)).square().sum()
            for name, w in self._weights().items()
        ]
        total = torch.stack(terms).sum()
        return total.detach() * 0 if self.finished else self.rho / 2 * total

    def update_epoch(self, epoch: int) -> None:
        """Tell the pruner that epoch number ``epoch`` (from 0) begins: the training of an iteration may be
        done. Where epochs of several are skipped, there is one update.
        """
        self._bound("update_epoch")
        super().update_epoch(epoch)
        done = min(epoch // self.epochs_per_iteration, self.num_iterations)
        if done > self.iteration and not self.finished:
            self.iteration = done
            self._iterate()
            if done == self.num_iterations:
                self.finish()

    def finish(self) -> None:
        """Choose the final masks by the weights as they are."""
        self._bound("finish")
        self.finished = True
        self.update_mask()

    @torch.no_grad()
    def _iterate(self) -> None:
        """``Z ← Π(W + U)``, ``U ← U + W − Z``."""
        moved = {name: w.detach() + self.duals[name].to(w.device) for name, w in self._weights().items()}
        self.targets = self._pruned(moved)
        self.duals = {name: value - self.targets[name] for name, value in moved.items()}

    def _pruned(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """``Π``: what the criteria leave of these weights, chosen on a copy of the graph that holds them."""
        module = self._bound("update_epoch")
        twin = module.fork()
        of = {id(parameter): name for name, parameter in self._weights().items()}
        for name, parameter in list(twin.named_parameters(remove_duplicate=False)):
            if id(parameter) in of:
                value = weights[of[id(parameter)]]
                set_tensor(twin, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
        self._bind_criteria(twin)
        self._choose({name: goal.goal or 0.0 for name, goal in self.settings.items()})
        masks = get_masks(twin)
        self._bind_criteria(module)
        return {
            name: value * masks[name]["weight"] if "weight" in masks.get(name, {}) else value
            for name, value in weights.items()
        }

    def _weights(self) -> dict[str, nn.Parameter]:
        """The selected layers' weights."""
        module = self._bound("regularizer")
        weights: dict[str, nn.Parameter] = {}
        for name in self.settings:
            parameter = module.get_submodule(name)._parameters.get("weight")
            if parameter is None:
                raise ConfigError(
                    f"{name}: pruner 'admm' pulls at its weight, which is computed from other parameters; "
                    "exclude the layer"
                )
            weights[name] = parameter
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The base's, ``Z``, ``U`` and how far it is."""
        return super().state_dict() | {
            "iteration": self.iteration,
            "finished": self.finished,
            "targets": dict(self.targets),
            "duals": dict(self.duals),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, see ``ScheduledPruner``."""
        super().load_state_dict(state)
        self.iteration, self.finished = int(state["iteration"]), bool(state["finished"])
        self.targets, self.duals = dict(state["targets"]), dict(state["duals"])
