"""A trial of the short way: prune to the sparsities of the trial, speed up, fine-tune, quantize.

dense → compile(sparsities) → within the budget → speedup → train → compile(bits) → train
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxcompress.auto import artefact
from fxcompress.auto.algorithms import ALIASES
from fxcompress.auto.interface import Evaluator
from fxcompress.auto.jobs import Context, Job, resolve
from fxcompress.auto.limits import COUNTED, Limit
from fxcompress.auto.warm import layers_to_prune, starting_points
from fxcompress.budget import fit_budget
from fxcompress.compiler import compile as compile_model
from fxcompress.compiler import speedup
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import count_macs, count_parameters
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import PRUNERS
from fxcompress.pruning.granularity import is_elementwise
from fxcompress.pruning.scoring import ScoringPruner

TRAINED = ("qat", "lsq", "dorefa", "bnn")
"""Quantizers after which it is worth while to train."""

FLOORS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the highest sparsity to which the others are raised where scaling alone misses a budget."""

Train = Callable[[nn.Module], Iterator[Any] | None]


@dataclass
class SearchJob(Job):
    """Trials over sparsities per layer and bit widths; each part itself or its place, ``"module:name"``.

    Args:
        network: the trained model, or a function that makes it.
        evaluate: ``evaluate(module) -> float``.
        inputs: as for ``fxcompress.compile``, or a function that makes them.
        train: ``train(module)``, in place; a generator function may yield after every epoch, so that an
            Optuna pruner can give a trial up.
        data: batches to measure and calibrate on, or a function that makes them.
        loss_fn: ``loss_fn(output, batch)``.
        limits: the budget.
        layers: what is pruned; ``None``: every layer that can be but those that make the output.
        pruners: names.
        shares: targets of the points to begin with.
        sensitivity: begin with points that a sensitivity analysis proposes, too.
        round_to: keep a multiple of this many channels, which some machines are faster with.
    """

    network: nn.Module | Callable[[], nn.Module] | str
    evaluate: Evaluator | str
    inputs: Any = None
    train: Train | str | None = None
    data: Iterable[Any] | Callable[[], Iterable[Any]] | str | None = None
    loss_fn: Callable[[Any, Any], Any] | str | None = None
    limits: tuple[Limit, ...] = ()
    layers: tuple[str, ...] | None = None
    pruners: tuple[str, ...] = ("l1",)
    shares: tuple[tuple[str, float], ...] = ()
    sensitivity: bool = True
    round_to: int | None = None

    def model(self) -> nn.Module:
        """The dense model.

        Raises:
            ConfigError: if what was given is none and makes none.
        """
        found = _made(self.network)
        if not isinstance(found, nn.Module):
            raise ConfigError(
                f"model: expected a torch.nn.Module or a function that makes one, got {found!r}"
            )
        return found

    def evaluator(self) -> Evaluator:
        """Its metric."""
        found: Evaluator = resolve(self.evaluate)
        return found

    def example_inputs(self) -> Any:
        """Those the user gives, if any."""
        return _made(self.inputs)

    def facts(self, dense: CompiledModule) -> dict[str, Any]:
        """The layers whose sparsities are searched."""
        pruner = next((p for p in self.pruners if p != "none"), "l1")
        return {"layers": layers_to_prune(dense, ALIASES.get(pruner, pruner), self.layers)}

    def warm_starts(self, context: Context) -> list[dict[str, Any]]:
        """Sparsities that meet the targets, shared out evenly and by sensitivity."""
        named = [ALIASES.get(p, p) for p in self.pruners if p != "none"]
        pruner = next((p for p in named if not _elementwise(p)), None)
        if pruner is None or not self.shares:
            return []
        dense, options = capture(self.model(), self.example_inputs()), self._options()
        layers = layers_to_prune(dense, pruner, self.layers)
        file = context.dense / artefact.SENSITIVITY if self.sensitivity else None
        points = starting_points(dense, self.metric, layers, self.shares, file)
        fitted = [self._fitted(dense, _entries(pruner, p), kind, share, options) for kind, share, p in points]
        label = self.pruners[named.index(pruner)]
        return [
            {"pruner": label, **{f"sparsity/{e['op_names'][0]}": e["sparsity"] for e in f}}
            for f in fitted
            if f
        ]

    def compress(self, spec: dict[str, Any], context: Context) -> tuple[CompiledModule, list[dict[str, Any]]]:
        """Prune, fine-tune, quantize."""
        module, options = capture(self.model(), self.example_inputs()), self._options()
        pruning, quantization, steps = spec["pruning"], spec["quantization"], 0
        if pruning and _elementwise(pruning[0]["pruner"]):  # the masks have to hold while it trains
            module = compile_model(module, pruning, **options)
            steps = self._trained(module, steps, context)
            module = speedup(module)
        elif pruning:
            pruning = self._within(module, pruning, options)
            module = speedup(compile_model(module, pruning, **options), round_to=self.round_to)
            steps = self._trained(module, steps, context)
        if quantization:
            module = compile_model(module, quantization, **options)
            if quantization[0]["quantizer"] in TRAINED:
                self._trained(module, steps, context)
        return module.eval(), [*pruning, *quantization]

    def _options(self) -> dict[str, Any]:
        """What criteria that measure are given."""
        data = _made(self.data)
        return {
            "data": list(data) if isinstance(data, Iterator) else data,
            "loss_fn": resolve(self.loss_fn),
        }

    def _trained(self, module: CompiledModule, steps: int, context: Context) -> int:
        """Train in place; returns the number of steps told so far."""
        train = resolve(self.train)
        epochs = None if train is None else train(module)
        for _ in epochs or ():
            self.progress(module, steps, context)
            steps += 1
        module.eval()
        return steps

    def _within(
        self, dense: CompiledModule, entries: list[dict[str, Any]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The entries, scaled up if what they leave is more than the counted limits allow."""
        for limit in self.limits:
            if limit.kind in COUNTED:
                count = _COUNTS[limit.kind]
                share = limit.share({limit.kind: count(dense, dense)})
                masked = compile_model(dense, entries, **options)
                left = count(speedup(masked, verify=False, round_to=self.round_to), dense)
                if left > share * count(dense, dense):
                    entries = self._fitted(dense, entries, limit.kind, share, options) or entries
        return entries

    @staticmethod
    def _fitted(
        dense: CompiledModule, entries: list[dict[str, Any]], kind: str, share: float, options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """The entries at the scale that meets the share; none if these layers cannot.

        Where the layers that are to stay are too many, they are raised towards the sparsest until it is met.
        """
        most = max(entry["sparsity"] for entry in entries)
        aim: dict[str, Any] = {kind: share}
        for floor in FLOORS:
            raised = [{**entry, "sparsity": max(entry["sparsity"], floor * most)} for entry in entries]
            try:
                scaled = fit_budget(dense, raised, **aim, **options)
            except FxcompressError:
                continue
            return [{**entry, "sparsity": round(entry["sparsity"], 4)} for entry in scaled]
        return []


_COUNTS: dict[str, Callable[[CompiledModule, CompiledModule], int]] = {
    "macs": lambda module, dense: count_macs(module, dense.example_inputs).total,
    "parameters": lambda module, dense: count_parameters(module),
}


def _entries(pruner: str, sparsities: dict[str, float]) -> list[dict[str, Any]]:
    return [
        {"pruner": pruner, "sparsity": s, "op_names": [layer]} for layer, s in sparsities.items() if s > 0
    ]


def _elementwise(pruner: str) -> bool:
    cls = PRUNERS[pruner]
    return issubclass(cls, ScoringPruner) and is_elementwise(cls.granularity)


def _made(value: Any) -> Any:
    """What a reference or a function without arguments makes; a copy of anything else."""
    found = resolve(value)
    if callable(found) and not isinstance(found, nn.Module):
        return found()
    return copy.deepcopy(found) if isinstance(found, nn.Module) else found
