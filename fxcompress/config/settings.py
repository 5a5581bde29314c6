"""What a selected node is to get, and from which entry each key came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxcompress.config.registry import DEFAULT_PRUNER, DEFAULT_QUANTIZER, quantizer_defaults
from fxcompress.config.schema import Entry
from fxcompress.config.values import (
    DEFAULT_BITS,
    DEFAULT_DTYPE,
    DEFAULT_SCALE,
    DEFAULT_SCHEME,
    Granularity,
    Options,
    PerType,
)

AMOUNTS = ("sparsity", "total_sparsity", "final_sparsity")
"""The keys that say how much is removed in the end: one of them holds."""


@dataclass(frozen=True)
class PruningSettings:
    """How one node is pruned. `sources` maps each key that an entry gave to that entry's index."""

    pruner: str = DEFAULT_PRUNER
    sparsity: float | None = None
    total_sparsity: float | None = None
    max_sparsity_per_layer: float | None = None
    granularity: Granularity = "default"
    initial_sparsity: float = 0.0
    final_sparsity: float | None = None
    start_epoch: int = 0
    end_epoch: int | None = None
    frequency: int = 1
    prune_iterations: int | None = None
    pruner_options: Options = field(default=(), hash=False)
    sources: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def goal(self) -> float | None:
        """The share to remove in the end, whichever key gives it."""
        given = (self.final_sparsity, self.total_sparsity, self.sparsity)
        return next((amount for amount in given if amount is not None), None)

    def at(self, amount: float) -> PruningSettings:
        """These settings with ``amount`` in the place of the goal, for a moment of a schedule."""
        if self.total_sparsity is not None:
            return replace(self, total_sparsity=amount)
        sources = {"sparsity" if key == "final_sparsity" else key: i for key, i in self.sources.items()}
        return replace(self, sparsity=amount, final_sparsity=None, sources=sources)

    def given(self) -> dict[str, Any]:
        """The keys that config entries gave, with their values."""
        return {key: getattr(self, key) for key in self.sources}


@dataclass(frozen=True)
class QuantSettings:
    """How one node is quantized. `sources` maps each key that an entry gave to that entry's index."""

    quantizer: str = DEFAULT_QUANTIZER
    quant_types: tuple[str, ...] = ("weight", "input")
    quant_bits: PerType[int] = DEFAULT_BITS
    quant_dtype: PerType[str] = DEFAULT_DTYPE
    quant_scheme: PerType[str] = DEFAULT_SCHEME
    quant_scale: PerType[str] = DEFAULT_SCALE
    quant_start_step: int = 0
    quantizer_options: Options = field(default=(), hash=False)
    sources: Mapping[str, int] = field(default_factory=dict, hash=False)


class Merged:
    """The keys one node has received so far; a later entry overrides an earlier one key by key."""

    def __init__(self) -> None:
        self._pruning: dict[str, tuple[object, int]] = {}
        self._quantization: dict[str, tuple[object, int]] = {}

    def add_pruning(self, entry: Entry) -> None:
        """Take the entry's pruning keys; of those that say how much only the latest counts."""
        given = entry.pruning
        if any(key in given for key in AMOUNTS):
            for key in AMOUNTS:
                self._pruning.pop(key, None)
        if "pruner" in given:  # options are those of one algorithm
            self._pruning.pop("pruner_options", None)
        self._pruning.update({key: (value, entry.index) for key, value in given.items()})

    def add_quantization(self, entry: Entry) -> None:
        """Take the entry's quantization keys."""
        if "quantizer" in entry.quantization:
            self._quantization.pop("quantizer_options", None)
        self._quantization.update({key: (value, entry.index) for key, value in entry.quantization.items()})

    def clear(self) -> None:
        """Forget everything: the node is excluded."""
        self._pruning.clear()
        self._quantization.clear()

    @property
    def pruner(self) -> str:
        """The pruner in force so far."""
        return str(self._pruning.get("pruner", (DEFAULT_PRUNER, -1))[0])

    @property
    def quantizer(self) -> str:
        """The quantizer in force so far."""
        return str(self._quantization.get("quantizer", (DEFAULT_QUANTIZER, -1))[0])

    def pruning_settings(self) -> PruningSettings | None:
        """The pruning settings, or None if no entry gave any."""
        return PruningSettings(**_keywords(self._pruning)) if self._pruning else None

    def quant_settings(self) -> QuantSettings | None:
        """The quantization settings, or None if no entry gave any."""
        given = _keywords(self._quantization)
        return (
            QuantSettings(**{**quantizer_defaults(self.quantizer), **given}) if self._quantization else None
        )


def _keywords(given: Mapping[str, tuple[object, int]]) -> dict[str, Any]:
    sources = {key: index for key, (_, index) in given.items()}
    return {**{key: value for key, (value, _) in given.items()}, "sources": sources}
