"""Movement: weights that training moves towards zero go first (Sanh et al., Movement Pruning: Adaptive
Sparsity by Fine-Tuning, NeurIPS 2020).

    pruner = MovementPruner(model, [{"sparsity": 0.85, "op_types": ["Linear"]}], optimizer,
                            warm_up_step=100, cool_down_beginning_step=1000)
    model = pruner.compress()
    ...                          # train: every optimizer.step() moves the scores and the masks
    pruner.finish()              # the masks that speedup removes

The straight-through gradient of a score is ``∂L/∂S = ∂L/∂W' · W`` with ``W' = W · M`` the masked weight: for
masked entries too, whose own gradient ``∂L/∂W = ∂L/∂W' · M`` is zero. It is the gradient of the mask ``M``
itself, so the masks take gradients while the model trains, and the graph stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from fxcompress.config.settings import PruningSettings
from fxcompress.config.values import Granularity
from fxcompress.errors import ConfigError
from fxcompress.graph.calls import Reference
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.passes.insert_masks import insert_masks
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scheduled import decimal
from fxcompress.pruning.scoring import Choice, ScoringPruner
from fxcompress.rules.flow import Flow


@final
class MovementPruner(ScoringPruner):
    """Score of weight ``w``: ``S = −lr · Σ_t (∂L/∂w')_t · w_t`` over the optimizer's steps; the lowest go.

    After ``t`` steps ``s_t = s (1 − (1 − (t − t_w)/(t_c − t_w))³)`` is masked, nothing before ``t_w =
    warm_up_step`` and ``s`` from ``t_c = cool_down_beginning_step`` on; masks follow the scores at every
    step. Scores of different layers compare as they are (``total_sparsity``). With granularity
    ``out_channel`` whole rows go, by the sum of their scores: until ``finish()`` only weights and biases of
    the selected layers are masked, as behind a masked norm no gradient would say that a channel should come
    back.

    Args:
        lr: how fast scores move.
        warm_up_step: steps before the first mask.
        cool_down_beginning_step: steps until the sparsity is reached.
    """

    name: ClassVar[str] = "movement"
    granularity: ClassVar[Granularity] = "element"
    comparable: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        warm_up_step: int,
        cool_down_beginning_step: int,
        lr: float = 1e-2,
        **options: Any,
    ) -> None:
        """As the base's.

        Raises:
            ConfigError: also if the steps do not ascend, or an entry names another algorithm.
        """
        super().__init__(*args, **options)
        if not 0 <= warm_up_step < cool_down_beginning_step:
            raise ConfigError(
                "warm_up_step, cool_down_beginning_step: expected 0 <= warm_up_step < "
                f"cool_down_beginning_step, got {warm_up_step} and {cool_down_beginning_step}"
            )
        if not lr > 0:
            raise ConfigError(f"lr: expected a positive number, got {lr!r}; the default is 0.01")
        for name, goal in self.selection.pruning.items():
            if goal.pruner != self.name:
                raise ConfigError(
                    f"config_list[{goal.sources['pruner']}]: pruner: MovementPruner ranks {name!r} by its "
                    f"own scores, got {goal.pruner!r}; leave 'pruner' out, or use AGPPruner"
                )
        self.lr = lr
        self.warm_up_step = warm_up_step
        self.cool_down_beginning_step = cool_down_beginning_step
        self.scores: dict[str, Tensor] = {}
        """Layer → ``S``, of its weight's shape."""
        self.finished = False
        self._goals: dict[str, PruningSettings] = {}
        self._known: tuple[Flow, list[Layer]] | None = None

    # -- what is masked ------------------------------------------------------------------------------------
    def bind(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Put a mask on every weight (and bias) that may be masked, so that all scores move at once."""
        super().bind(module, settings)
        self._goals = dict(settings)
        self.choice = None
        _, layers = super()._analyzed()
        masks: dict[str, Tensor] = {}
        for layer in layers:
            weight = self._weight(layer)
            masks[str(layer.weight_name)] = torch.ones_like(weight)
            if self._granularity(layer) in ("out_channel", "head") and layer.bias_name is not None:
                bias = get_tensor(module, layer.bias_name)
                masks[layer.bias_name] = torch.ones_like(bias.detach())
            self.scores[layer.name] = torch.zeros_like(weight.detach())
        insert_masks(module, masks)
        self._known = None
        module.register_forward_pre_hook(lambda *_: self._watch())

    def _weight(self, layer: Layer) -> nn.Parameter:
        parameter = None
        if layer.weight_name is not None:
            parameter = get_tensor(self._bound("compress"), Reference(layer.weight_name))
        if not isinstance(parameter, nn.Parameter):
            raise ConfigError(
                f"{layer.name}: pruner 'movement' needs the gradient of its weight, which is computed from "
                "other parameters; exclude the layer"
            )
        return parameter

    def importance(self, layer: Layer) -> Tensor:
        """``S``."""
        return layer.rule.canonical(layer.call, self.scores[layer.name])

    def amount(self, goal: PruningSettings) -> float:
        """The sparsity after ``steps`` steps."""
        start, end, target = self.warm_up_step, self.cool_down_beginning_step, goal.goal or 0.0
        if self.steps >= end or self.finished:
            return target
        if self.steps < start:
            return 0.0
        return decimal(target * (1 - (1 - (self.steps - start) / (end - start)) ** 3))

    def choose(self) -> None:
        """Mask the lowest scores; nothing while the schedule stands at 0."""
        now = {name: goal.at(self.amount(goal)) for name, goal in self._goals.items()}
        if any(settings.goal for settings in now.values()):
            self.configure(now)
            super().choose()

    def update_mask(self) -> None:
        """Choose the masks by the scores as they are."""
        self._unwatch()
        super().update_mask()

    def finish(self) -> None:
        """Fix the masks at the final sparsity, for ``speedup``: coupled channels are masked all the way."""
        self._bound("finish")
        self.finished, self._known = True, None
        self.update_mask()

    def _insert(self, choice: Choice, flow: Flow, layers: list[Layer]) -> None:
        if not self.finished:  # nothing but the layers themselves is masked
            rows = {name: ~gone for name, gone in choice.units.items() if bool(gone.any())}
            choice = replace(choice, units={}, rows=choice.rows | rows)
        super()._insert(choice, flow, layers)

    def _analyzed(self) -> tuple[Flow, list[Layer]]:
        if self._known is None or self.finished:  # until then the graph stays as ``bind`` left it
            self._known = super()._analyzed()
        flow, layers = self._known
        return flow, [replace(layer, settings=self.settings[layer.name]) for layer in layers]

    # -- the scores ----------------------------------------------------------------------------------------
    def stepped(self) -> None:
        """Move the scores by what the masks' gradients say, and the masks by the scores."""
        if self.finished:
            return
        module = self._bound("step")
        for name, mask in self._masks(module).items():
            if mask.grad is not None and bool(mask.grad.isfinite().all()):  # else a scaler skipped a step
                self.scores[name] = self.scores[name].to(mask.device) - self.lr * mask.grad
            mask.grad = None
        self._unwatch()
        if self.steps >= self.warm_up_step:
            self.update_mask()

    def _watch(self) -> None:
        """Let the masks take gradients in this forward pass, if it is one of training."""
        module = self._bound("forward")
        if not (module.training and torch.is_grad_enabled()) or self.finished:
            return
        for name, mask in self._masks(module).items():
            if not mask.is_leaf:  # moved to another device while it took gradients
                module.get_submodule(name)._buffers["weight_mask"] = mask = mask.detach()
            mask.requires_grad_(True)

    def _unwatch(self) -> None:
        for mask in self._masks(self._bound("step")).values():
            mask.requires_grad_(False)

    def _masks(self, module: CompiledModule) -> dict[str, Tensor]:
        return {name: module.get_submodule(name).get_buffer("weight_mask") for name in self.scores}

    def state_dict(self) -> dict[str, Any]:
        """The base's, and the scores."""
        return super().state_dict() | {"scores": dict(self.scores), "finished": self.finished}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.finished, self._known = bool(state["finished"]), None
        super().load_state_dict(state)
        self.scores = dict(state["scores"])
