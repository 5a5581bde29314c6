"""``search``: say the budget, get the model.

result = search(model, evaluate, budget={"macs": 0.35}, trials=20, data=batches, train=finetune)
result.model, result.config_list, result.trials
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxcompress.auto.algorithms import ALIASES, algorithm
from fxcompress.auto.driver import Driver
from fxcompress.auto.limits import COUNTED, Limit, limits_of
from fxcompress.auto.options import make_options
from fxcompress.auto.result import SearchResult
from fxcompress.auto.search_job import TRAINED, SearchJob
from fxcompress.budget import MOST
from fxcompress.errors import ConfigError, did_you_mean
from fxcompress.pruning import PRUNERS
from fxcompress.quantization import QUANTIZERS

if TYPE_CHECKING:
    import optuna

GOALS = (0.35, 0.6)
"""Shares of the MACs to begin with where the budget says nothing of what can be counted."""
_PARTS = ("inputs", "train", "data", "loss_fn", "layers", "sensitivity", "round_to")


def search(
    model: Any,
    evaluator: Any,
    *,
    budget: Mapping[str, Any] | None = None,
    trials: int = 20,
    algorithms: Sequence[str] = ("l1", "fpgm"),
    bits: Sequence[int] = (8,),
    **options: Any,
) -> SearchResult:
    """Search sparsities per layer, and bit widths, for the best model that fits a budget.

    Args:
        model: a trained ``nn.Module``, a function that makes one, or its place ``"package.module:name"``.
            Like all functions given here it is sent to worker processes: it belongs to a module.
        evaluator: ``evaluator(module) -> float``, larger is better; or its place.
        budget: ``{cost: limit}``, see ``fxcompress.auto.limits``: ``{"macs": 0.35, "latency": "2ms"}``.
        trials: how many.
        algorithms: pruners and quantizers to choose from; a trial prunes, quantizes, or does both.
        bits: of quantized layers; with more than one each layer's are searched.
        options: ``inputs``, ``train``, ``data``, ``loss_fn``, ``layers``, ``sensitivity`` and ``round_to``
            of ``fxcompress.auto.SearchJob``, and the fields of ``fxcompress.auto.Options``. With
            ``objectives=("macs",)`` the Pareto front comes out.

    Returns:
        The result; its files are in ``options["folder"]``.

    Raises:
        ConfigError: before any work, naming the argument, what was expected and what was given.
        FxcompressError: if the dense model itself cannot be evaluated or exported.
    """
    parts = {name: options.pop(name) for name in _PARTS if name in options}
    limits = limits_of(budget)
    settings = make_options({**options, "trials": trials, "limits": limits})
    if settings.direction != "maximize":
        raise ConfigError("direction: search() maximizes what the evaluator returns; return its negative")
    pruners, quantizers = _split(algorithms)
    if any(isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 32 for b in bits) or not bits:
        raise ConfigError(f"bits: expected whole numbers from 1 to 32, got {bits!r}")
    needs = [name for name in quantizers if name not in ("none", "naive", "weight_only", "dynamic")]
    if needs and parts.get("data") is None and (parts.get("train") is None or needs[0] not in TRAINED):
        raise ConfigError(f"data: quantizer {needs[0]!r} chooses ranges on batches: expected some, got none")
    if parts.get("layers") is not None:
        parts["layers"] = tuple(parts["layers"])
    job = SearchJob(
        model, evaluator, limits=limits, pruners=pruners, shares=_goals(limits, settings.objectives), **parts
    )
    space = Space(pruners, quantizers, tuple(bits))
    return Driver(job, space.propose, [dataclasses.astuple(space), parts.get("layers")], settings).run()


@dataclasses.dataclass(frozen=True)
class Space:
    """What a trial chooses: names by the caller's, ``"none"`` for nothing."""

    pruners: tuple[str, ...]
    quantizers: tuple[str, ...]
    bits: tuple[int, ...]

    def propose(self, trial: optuna.Trial, baseline: dict[str, Any]) -> dict[str, Any]:
        """Config lists: an entry per layer that is pruned; of quantization one, or one per layer."""
        pruner = _chosen(trial, "pruner", self.pruners)
        quantizer = _chosen(trial, "quantizer", self.quantizers)
        layers = baseline["layers"] if pruner != "none" else []
        sparsities = {layer: trial.suggest_float(f"sparsity/{layer}", 0.0, MOST) for layer in layers}
        pruning = [
            {"pruner": ALIASES.get(pruner, pruner), "sparsity": round(s, 4), "op_names": [layer]}
            for layer, s in sparsities.items()
            if s >= 0.005
        ]
        if quantizer == "none":
            return {"pruning": pruning, "quantization": []}
        named = {"quantizer": ALIASES.get(quantizer, quantizer)}
        quantization: list[dict[str, Any]] = [{**named, "quant_bits": self.bits[0]}]
        if len(self.bits) > 1:
            for layer in baseline["layers"]:
                chosen = trial.suggest_categorical(f"bits/{layer}", self.bits)
                quantization.append({**named, "quant_bits": {"weight": chosen}, "op_names": [layer]})
        return {"pruning": pruning, "quantization": quantization}


def _chosen(trial: optuna.Trial, name: str, options: tuple[str, ...]) -> str:
    return str(trial.suggest_categorical(name, options)) if len(options) > 1 else options[0]


def _split(algorithms: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pruners and quantizers among the names, each with ``"none"`` where a trial may do without."""
    names = (algorithms,) if isinstance(algorithms, str) else tuple(dict.fromkeys(algorithms))
    kinds = {name: algorithm(name).kind for name in names}
    for name, kind in kinds.items():
        known = PRUNERS if kind == "pruner" else QUANTIZERS
        if ALIASES.get(name, name) not in known:
            hint = did_you_mean(name, known) or f"; choose among {', '.join(PRUNERS)}"
            raise ConfigError(f"algorithms: {name!r} follows a schedule in a training loop of its own{hint}")
    pruners = tuple(name for name, kind in kinds.items() if kind == "pruner")
    quantizers = tuple(name for name, kind in kinds.items() if kind == "quantizer")
    if not names:
        raise ConfigError("algorithms: expected at least one pruner or quantizer, got none")
    return (pruners or ("none",)), (("none", *quantizers) if pruners or not quantizers else quantizers)


def _goals(limits: Sequence[Limit], objectives: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Shares of what can be counted that the points to begin with aim at."""
    counted = [(x.kind, x.amount) for x in limits if x.kind in COUNTED and x.relative and x.amount < 1]
    kind = next((kind for kind in objectives if kind in COUNTED), "macs")
    return tuple(counted) or tuple((kind, share) for share in GOALS)
