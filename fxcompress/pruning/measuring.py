"""Bases of algorithms that measure: activations or gradients, over batches of data or steps of training.

    compile(model, [{"sparsity": 0.5, "pruner": "taylor"}], data=loader, loss_fn=loss)   # measured at once
    TaylorFOWeightFilterPruner(model, config_list, optimizer, statistics_batch_num=8)    # in the user's loop

With ``data``, batches are run in eval mode and nothing of the model changes. Without, the masks are chosen
after ``statistics_batch_num`` steps of the optimizer; until then everything is kept.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from rich.progress import track
from torch import Tensor, fx, nn

from fxcompress.config import Selection
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.calls import Reference
from fxcompress.graph.module import CompiledModule, eval_mode, get_tensor
from fxcompress.passes.observe import insert_observers, remove_observers
from fxcompress.pruning.base import LossFn
from fxcompress.pruning.batches import inputs_of
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner


class MeasuringPruner(ScoringPruner, ABC):
    """Ranks by sums over batches, one per layer: ``sums[layer name] / batches`` is their mean."""

    needs_loss: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        dependency_aware: bool = True,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
        statistics_batch_num: int | None = None,
    ) -> None:
        """As the base's, and ``statistics_batch_num``: how many batches of ``data`` (all by default) or steps
        of training (1 by default) are measured before masks are chosen.
        """
        super().__init__(
            model, config_list, optimizer, example_inputs=example_inputs,
            dependency_aware=dependency_aware, data=data, loss_fn=loss_fn,
        )  # fmt: skip
        if statistics_batch_num is not None and statistics_batch_num < 1:
            raise ConfigError(f"statistics_batch_num: expected at least 1, got {statistics_batch_num}")
        self.statistics_batch_num = statistics_batch_num
        self.sums: dict[str, Tensor] = {}
        self.batches = 0
        missing = [n for n, v in (("data", data), ("loss_fn", loss_fn)) if v is None and self._needs(n)]
        if missing and optimizer is None:
            raise ConfigError(
                f"pruner {self.name!r} measures the model on batches: expected "
                f"{' and '.join(f'{name}=...' for name in missing)}, got none; pass them, or an optimizer to "
                f"{type(self).__name__} so that it measures your own training loop"
            )

    def _needs(self, argument: str) -> bool:
        return argument == "data" or self.needs_loss

    def choose(self) -> None:
        """Measure if there is data, or wait for training steps."""
        if self.data is not None and not self.batches:
            _, layers = self._analyzed()
            self.measure(layers, self._batches(self.data))
        if self.batches:
            super().choose()
        else:
            _, layers = self._analyzed()
            self.watch(layers)

    def stepped(self) -> None:
        """Count a step of training; choose the masks after the last one that is measured."""
        if self.data is None and self.batches < (self.statistics_batch_num or 1):
            self.batches += 1
            if self.batches == (self.statistics_batch_num or 1):
                self.unwatch()
                self.update_mask()

    def forget(self) -> None:
        """Drop what was measured: the next choice measures the model as it is then."""
        self.sums, self.batches = {}, 0

    @abstractmethod
    def measure(self, layers: list[Layer], batches: Iterable[Any]) -> None:
        """Fill ``sums`` and count ``batches``."""

    @abstractmethod
    def watch(self, layers: list[Layer]) -> None:
        """Add to ``sums`` from now on, whenever the user trains."""

    @abstractmethod
    def unwatch(self) -> None:
        """Stop adding to ``sums``."""

    def add(self, layer: str, value: Tensor) -> None:
        """Add a measurement of one batch, float64 so that long sums stay exact."""
        value = value.detach().double()
        self.sums[layer] = self.sums[layer] + value if layer in self.sums else value

    def _batches(self, data: Iterable[Any]) -> Iterable[Any]:
        chosen = itertools.islice(data, self.statistics_batch_num)
        return track(chosen, f"{self.name}: measuring", transient=True)

    def state_dict(self) -> dict[str, Any]:
        """The base's, and the sums."""
        return super().state_dict() | {"sums": dict(self.sums), "batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on measuring, or with the masks chosen."""
        self.sums, self.batches = dict(state["sums"]), int(state["batches"])
        super().load_state_dict(state)


class GradientPruner(MeasuringPruner, ABC):
    """Measures a function of every weight and its gradient."""

    needs_loss: ClassVar[bool] = True

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one batch adds for every weight, of the weight's shape."""

    def importance(self, layer: Layer) -> Tensor:
        """The mean of the contributions."""
        return layer.rule.canonical(layer.call, (self.sums[layer.name] / self.batches).float())

    def measure(self, layers: list[Layer], batches: Iterable[Any]) -> None:
        """Run forward and backward on every batch, in eval mode."""
        module, loss_fn = self._bound("measure"), self.loss_fn
        weights = self._weights(layers)
        if loss_fn is None:
            raise ConfigError(f"pruner {self.name!r} needs loss_fn=..., got none")
        with eval_mode(module), torch.enable_grad():
            for batch in batches:
                args, kwargs = inputs_of(module, batch)
                loss = loss_fn(module(*args, **kwargs), batch)
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                    self.add(name, self._of(weight, gradient))
                self.batches += 1
        if not self.batches:
            raise FxcompressError(f"pruner {self.name!r}: data holds no batch")

    def watch(self, layers: list[Layer]) -> None:
        """Read the gradients in front of every step of the optimizer."""
        if self.optimizer is None:
            raise ConfigError(f"pruner {self.name!r}: expected data=... or an optimizer, got neither")
        weights = self._weights(layers)

        def read(*_: Any) -> None:
            for name, weight in weights.items():
                self.add(name, self._of(weight, weight.grad))

        self._handle = self.optimizer.register_step_pre_hook(read)

    def unwatch(self) -> None:
        """Stop reading gradients."""
        self._handle.remove()

    def _of(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        return torch.zeros_like(weight) if gradient is None else self.contribution(weight.detach(), gradient)

    def _weights(self, layers: list[Layer]) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for layer in layers:
            parameter = (
                None
                if layer.weight_name is None
                else get_tensor(self._bound("measure"), Reference(layer.weight_name))
            )
            if not isinstance(parameter, nn.Parameter) or not parameter.requires_grad:
                raise ConfigError(
                    f"{layer.name}: pruner {self.name!r} needs the gradient of its weight, which "
                    f"{'is computed' if parameter is None else 'does not require one'}; exclude the layer"
                )
            named[layer.name] = parameter
        return named


class ActivationPruner(MeasuringPruner, ABC):
    """Measures what passes at one place of the graph per layer."""

    @abstractmethod
    def observed(self, layer: Layer) -> tuple[fx.Node, int] | None:
        """The node to look at and its dimension to keep; ``None`` if there is nothing to measure."""

    @abstractmethod
    def contribution(self, values: Tensor) -> Tensor:
        """What one batch adds, ``[n]``, from ``values`` ``[n, samples]``."""

    def mean(self, layer: Layer) -> Tensor:
        """The mean contribution, ``[n]``."""
        return (self.sums[layer.name] / self.batches).float()

    def measure(self, layers: list[Layer], batches: Iterable[Any]) -> None:
        """Run every batch through an observed copy of the graph, in eval mode."""
        module = self._bound("measure")
        twin = module.fork(compiled=False)
        self._observe(twin, layers)
        twin.recompile()
        with eval_mode(twin), torch.no_grad():
            for batch in batches:
                args, kwargs = inputs_of(module, batch)
                twin(*args, **kwargs)
                self.batches += 1
        if not self.batches:
            raise FxcompressError(f"pruner {self.name!r}: data holds no batch")

    def watch(self, layers: list[Layer]) -> None:
        """Observe the graph that the user trains."""
        self._observe(self._bound("watch"), layers)

    def unwatch(self) -> None:
        """Take the observers out of the graph again."""
        remove_observers(self._bound("unwatch"))

    def _observe(self, module: CompiledModule, layers: list[Layer]) -> None:
        places: dict[str, Any] = {}
        for layer in layers:
            place = self.observed(layer)
            if place is None:
                raise ConfigError(
                    f"{layer.name}: pruner {self.name!r} found no activation behind it; exclude the layer"
                )
            places[layer.name] = place

        def told(name: str) -> Any:
            dim = places[name][1]
            return lambda x: self.add(name, self.contribution(x.movedim(dim, 0).flatten(1)))

        insert_observers(module, {name: (node.name, told(name)) for name, (node, _) in places.items()})
