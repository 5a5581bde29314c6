"""Bases of algorithms that measure: activations or gradients, over batches of data or steps of training.

    compile(model, [{"sparsity": 0.5, "pruner": "taylor"}], data=loader, loss_fn=loss)   # measured at once
    TaylorFOWeightFilterPruner(model, config_list, optimizer, statistics_batch_num=8)    # in the user's loop

With ``data``, batches are run in eval mode and nothing of the model changes. Without, the masks are chosen
after ``statistics_batch_num`` steps of the optimizer; until then everything is kept. In the user's loop
gradients are those the optimizer steps with (accumulated, clipped, unscaled, reduced over processes), and
activations those of forward passes with gradients enabled, so that validation between steps is not measured.
Where ``torch.distributed`` is initialized all processes measure together and choose the same masks; each has
to be given its share of the data.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.calls import Reference
from fxcompress.graph.module import CompiledModule, eval_mode, get_tensor
from fxcompress.passes.observe import insert_observers, remove_observers
from fxcompress.progress import shown
from fxcompress.pruning.distributed import added_up
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.scoring import ScoringPruner
from fxcompress.training.batches import run_on


class MeasuringPruner(ScoringPruner, ABC):
    """Ranks by sums over batches, one per layer."""

    needs_loss: ClassVar[bool] = False

    def __init__(self, *args: Any, statistics_batch_num: int | None = None, **options: Any) -> None:
        """As the base's, and ``statistics_batch_num``: how many batches of ``data`` (all by default) or steps
        of training (1 by default) are measured before masks are chosen.

        Raises:
            ConfigError: if there is nothing to measure on: neither data, an optimizer, nor
                ``statistics_batch_num``, which says that ``use_optimizer`` will be called.
        """
        super().__init__(*args, **options)
        if statistics_batch_num is not None and not (
            type(statistics_batch_num) is int and statistics_batch_num >= 1
        ):
            raise ConfigError(
                f"statistics_batch_num: expected an integer of at least 1, got {statistics_batch_num!r}"
            )
        self.statistics_batch_num = statistics_batch_num
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        """How many measurements each sum holds: one per batch, or per forward pass of training."""
        self.batches = 0
        """How many batches or steps of training this process has measured."""
        self._layers: list[str] = []
        self._watching = False
        given = {"data": self.data, "loss_fn": self.loss_fn}
        missing = [name for name, value in given.items() if value is None and self._needs(name)]
        promised = self.data is None and statistics_batch_num is not None
        if missing and self.optimizer is None and not promised:
            raise ConfigError(
                f"pruner {self.name!r} measures the model on batches: expected "
                f"{' and '.join(f'{name}=...' for name in missing)}, got none; pass them, or to "
                f"{type(self).__name__} an optimizer so that it measures your own training loop, or "
                "statistics_batch_num=... steps if use_optimizer() or a callback gives it one later"
            )

    def _needs(self, argument: str) -> bool:
        return argument == "data" or self.needs_loss

    def choose(self) -> None:
        """Measure if there is data, or wait for training steps."""
        if self.data is not None and not self.batches:
            self.measure(self._measured(), self._batches(self.data))
            if not self.batches:
                raise FxcompressError(f"pruner {self.name!r}: data holds no batch")
            self._add_up()
        if self.batches:
            super().choose()
        elif not self._watching:
            self._start()

    def update_mask(self) -> None:
        """Choose the masks anew, from what has been measured so far.

        Raises:
            FxcompressError: if nothing has, naming a layer where others have.
        """
        if self.bound_model is not None and not self.batches:
            raise FxcompressError(
                f"{type(self).__name__}.update_mask: nothing has been measured yet; the masks are chosen "
                f"after {self._wanted} steps of training"
            )
        self._require_sums()
        watching = self._watching
        self._stop()
        super().update_mask()
        if watching:
            self._start()

    def stepped(self) -> None:
        """Count a step of training; choose the masks after the last one that is measured."""
        if self._watching:
            self.batches += 1
            if self.batches >= self._wanted:
                self._stop()
                self._add_up()
                self.update_mask()

    def export_model(
        self,
        model_path: str | os.PathLike[str],
        mask_path: str | os.PathLike[str] | None = None,
        onnx_path: str | os.PathLike[str] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """As the base's.

        Raises:
            FxcompressError: if steps of training are still to be measured, so that no masks are chosen yet.
        """
        if self._watching:
            raise FxcompressError(
                f"{type(self).__name__}.export_model: {self.batches} of {self._wanted} steps of training "
                "have been measured and no masks chosen; train what compress() returned further, or make the "
                "pruner with a smaller statistics_batch_num"
            )
        super().export_model(model_path, mask_path, onnx_path, input_shape)

    @property
    def _wanted(self) -> int:
        """After how many steps of training the masks are chosen."""
        return self.statistics_batch_num or 1

    def _measured(self) -> list[Layer]:
        _, layers = self._analyzed()
        self._layers = [layer.name for layer in layers]
        return layers

    def _start(self) -> None:
        self.watch(self._measured())
        self._watching = True

    def _stop(self) -> None:
        if self._watching:
            self.unwatch()
            self._watching = False

    def _add_up(self) -> None:
        """Let the sums be those of all processes."""
        self._require_sums()
        self.sums, self.counts = added_up(self.sums, self.counts)

    def _require_sums(self) -> None:
        """Name a layer that nothing was measured of."""
        missing = next((name for name in self._layers if name not in self.sums), None)
        if missing is not None:
            raise FxcompressError(
                f"{missing}: pruner {self.name!r} measured nothing of it in {self.batches} steps: it looks "
                "at forward passes with gradients enabled, or at gradients in front of an optimizer's steps; "
                "train the module that compress() returned, and call use_optimizer(optimizer) where the "
                "pruner was made without one"
            )

    def forget(self) -> None:
        """Drop what was measured: the next choice measures the model as it is then."""
        self.sums, self.counts, self.batches = {}, {}, 0

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
        self.counts[layer] = self.counts.get(layer, 0) + 1

    def mean(self, layer: Layer) -> Tensor:
        """The mean measurement of a layer."""
        return (self.sums[layer.name] / self.counts[layer.name]).float()

    def _batches(self, data: Iterable[Any]) -> Iterable[Any]:
        return shown(itertools.islice(data, self.statistics_batch_num), f"{self.name}: measuring")

    def state_dict(self) -> dict[str, Any]:
        """The base's, and the sums."""
        measured = {"sums": dict(self.sums), "counts": dict(self.counts), "batches": self.batches}
        return super().state_dict() | measured

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on measuring, or with the masks chosen."""
        self._bound("load_state_dict")
        if state.get("pruner") == self.name and state["choice"] is not None:
            self._stop()
        super().load_state_dict(state)
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
        self.batches = int(state["batches"])


class GradientPruner(MeasuringPruner, ABC):
    """Measures a function of every weight and its gradient."""

    needs_loss: ClassVar[bool] = True
    _read: Mapping[str, nn.Parameter] = MappingProxyType({})

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one batch adds for every weight, of the weight's shape."""

    def derivatives(self, loss: Tensor, weights: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
        """What ``contribution`` gets for each weight: the gradient of the loss of one batch."""
        return torch.autograd.grad(loss, weights, allow_unused=True)

    def importance(self, layer: Layer) -> Tensor:
        """The mean of the contributions."""
        return layer.rule.canonical(layer.call, self.mean(layer))

    def measure(self, layers: list[Layer], batches: Iterable[Any]) -> None:
        """Run forward and backward on every batch, in eval mode."""
        module, loss_fn = self._bound("measure"), self.loss_fn
        weights = self._weights(layers)
        if loss_fn is None:
            raise ConfigError(f"pruner {self.name!r} needs loss_fn=..., got none")
        with eval_mode(module), torch.enable_grad():
            for batch in batches:
                loss = loss_fn(run_on(module, batch), batch)
                derivatives = self.derivatives(loss, list(weights.values()))
                for (name, weight), gradient in zip(weights.items(), derivatives, strict=True):
                    self.add(name, self._of(weight, gradient))
                self.batches += 1

    def watch(self, layers: list[Layer]) -> None:
        """Read the gradients in front of every step of the optimizer from now on."""
        self._read = self._weights(layers)

    def unwatch(self) -> None:
        """Stop reading gradients."""
        self._read = {}

    def about_to_step(self, scale: float) -> None:
        """Add what the optimizer is about to step with."""
        for name, weight in self._read.items():
            if weight.grad is not None:
                self.add(name, self._of(weight, weight.grad / scale if scale != 1 else weight.grad))

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

    def measure(self, layers: list[Layer], batches: Iterable[Any]) -> None:
        """Run every batch through an observed copy of the graph, in eval mode."""
        module = self._bound("measure")
        twin = module.fork(compiled=False)
        self._observe(twin, layers, training=False)
        twin.recompile()
        with eval_mode(twin), torch.no_grad():
            for batch in batches:
                run_on(twin, batch)
                self.batches += 1

    def watch(self, layers: list[Layer]) -> None:
        """Observe the graph that the user trains."""
        self._observe(self._bound("watch"), layers, training=True)

    def unwatch(self) -> None:
        """Take the observers out of the graph again."""
        remove_observers(self._bound("unwatch"))

    def _observe(self, module: CompiledModule, layers: list[Layer], *, training: bool) -> None:
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

            def look(x: Tensor) -> None:
                self.add(name, self.contribution(x.movedim(dim, 0).flatten(1)))

            return look

        found = {name: (node.name, told(name)) for name, (node, _) in places.items()}
        insert_observers(module, found, training=training)
