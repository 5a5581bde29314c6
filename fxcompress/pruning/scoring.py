"""``ScoringPruner``: the base of all algorithms that rank; a subclass says what a weight is worth."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fxcompress.config.values import Granularity
from fxcompress.errors import ConfigError
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.insert_masks import insert_masks, reset_masks
from fxcompress.pruning.allocation import choose_global, choose_units, normalized
from fxcompress.pruning.base import Pruner
from fxcompress.pruning.coupled import mask_units
from fxcompress.pruning.granularity import is_elementwise, kept_entries
from fxcompress.pruning.layers import Layer, find_layers, keep_lowest_out, share
from fxcompress.pruning.units import Units, attention_heads, find_units
from fxcompress.rules.flow import Flow


@dataclass
class Choice:
    """What is masked, in terms of layers: their graph changes when masks come, and units with it."""

    units: dict[str, Tensor] = field(default_factory=dict)
    """Layer → ``bool[outputs]``: the output channels that go, with all that they are coupled to."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Layer → its weight's mask."""
    rows: dict[str, Tensor] = field(default_factory=dict)
    """Layer → ``bool[outputs]``: the output channels it keeps, where it loses any of its own."""

    def kept(self, layer: str) -> Tensor | None:
        """``bool[outputs]``: the output channels a layer keeps, if it was chosen to lose any."""
        return ~self.units[layer] if layer in self.units else self.rows.get(layer)


LOWEST = -1e20
"""The score of what has to go first: finite, so that sums over pieces stay so in float32."""


class ScoringPruner(Pruner, ABC):
    """Masks what scores lowest: output channels, coupled or layer by layer, or smaller pieces of weights."""

    granularity: ClassVar[Granularity] = "out_channel"
    """What ``granularity`` is where a config entry gives none."""
    comparable: ClassVar[bool] = False
    """Whether scores of different layers compare as they are; others are divided by the layer's mean."""
    group_score: ClassVar[str] = "sum"
    """How the scores of coupled channels become one: ``"sum"``, ``"mean"`` or ``"max"``."""

    keep_pruned: bool = False
    """Whether what the last choice masked is masked by the next one too."""
    choice: Choice | None = None
    _flow: Flow
    """The axes as they were analyzed last."""
    _found: Units | None = None
    """Their units, once they have been looked for."""
    removed: Mapping[tuple[str, ...], int] = MappingProxyType({})
    """How many units the last choice took from each class of layers that are chosen together."""
    lost: Mapping[tuple[str, ...], int] = MappingProxyType({})
    """How many units each class lost before the model was captured; ``sparsity`` counts them in."""

    @abstractmethod
    def importance(self, layer: Layer) -> Tensor:
        """What each weight of ``layer`` is worth, as ``layer.entries()`` (``[groups, out, in, taps]``)."""

    def score(self, layer: Layer) -> Tensor:
        """What each output channel is worth, ``[groups · out]``: by default the sum over its weights."""
        return self.importance(layer).flatten(0, 1).flatten(1).sum(1)

    def choose(self) -> None:
        """Rank, and mask what comes last."""
        flow, layers = self._analyzed()
        before = self.choice if self.keep_pruned else None
        self.choice = Choice()
        whole = [layer for layer in layers if not is_elementwise(self._granularity(layer))]
        self._choose_entries([a for a in layers if is_elementwise(self._granularity(a))], before)
        scores = [self._score(layer, before) for layer in whole]
        per_head = next((a for a in whole if str(self._granularity(a)).startswith("head")), None)
        if per_head is not None and not self.dependency_aware:
            raise ConfigError(
                f"{per_head.name}: granularity {self._granularity(per_head)!r}: expected "
                "dependency_aware=True, as heads go from queries, keys and values together; got False"
            )
        if self.dependency_aware and whole:
            units = self._units(flow, layers)
            pruned, notes, self.removed = choose_units(
                flow, units, whole, scores, self.group_score, self.lost
            )
            self._note(notes)
            self.choice.units = {a.name: torch.from_numpy(pruned[units.of(a.outputs)]) for a in whole}
        else:
            self._choose_rows(whole, scores)
        self._insert(self.choice, flow, layers)

    def _analyzed(self) -> tuple[Flow, list[Layer]]:
        module = self._bound("choose")
        self._flow = flow = analyze_axes(module, restrict=self.dependency_aware)
        self._found = None
        layers, missing = find_layers(module, flow, self.settings)
        self._note([f"{name}: not pruned: {reason}" for name, reason in missing.items()])
        return flow, layers

    def _score(self, layer: Layer, before: Choice | None) -> Tensor:
        """The channels' scores as they are ranked; those masked ``before`` go first."""
        score = self.score(layer).float()
        score = score if self.comparable else normalized(score)
        kept = None if before is None else before.kept(layer.name)
        return score if kept is None else score.where(kept.to(score.device), LOWEST)

    def _importance(self, layer: Layer, before: Choice | None) -> Tensor:
        """The weights' importance as it is ranked; those masked ``before`` go first."""
        importance = self.importance(layer)
        mask = None if before is None else before.weights.get(layer.name)
        if mask is None:
            return importance
        kept = layer.rule.canonical(layer.call, mask).to(importance.device) != 0
        return importance.where(kept, LOWEST)

    def _granularity(self, layer: Layer) -> Granularity:
        given = layer.settings.granularity
        return self.granularity if given == "default" else given

    def _units(self, flow: Flow, layers: list[Layer]) -> Units:
        """The units of coupled channels, attention divided into heads or features where layers ask for it."""
        if self._found is None:
            self._found = self._find_units(flow, layers)
        return self._found

    def _find_units(self, flow: Flow, layers: list[Layer]) -> Units:
        along: dict[int, int] = {}
        for layer in layers:
            asked = {"head": 1, "head_dim": -1}.get(str(self._granularity(layer)))
            if asked is None:
                continue
            heads = attention_heads(flow, layer.outputs)
            if not heads:
                raise ConfigError(
                    f"{layer.name}: granularity {self._granularity(layer)!r}: expected a layer that makes "
                    "queries, keys or values, found no attention behind it; give it an entry of its own "
                    "without granularity"
                )
            along |= dict.fromkeys(heads, asked)
        return find_units(flow, along)

    def _choose_entries(self, layers: list[Layer], before: Choice | None) -> None:
        together, alone = by_entry(layers)
        for layer in alone:
            importance, sparsity = self._importance(layer, before), layer.settings.sparsity or 0.0
            kept = kept_entries(importance, self._granularity(layer), sparsity, layer.name)
            self._keep_entries(layer, kept)
        for group in together:
            wrong = next((a for a in group if self._granularity(a) != "element"), None)
            if wrong is not None:
                raise ConfigError(
                    f"{wrong.name}: total_sparsity with granularity {self._granularity(wrong)!r}: expected "
                    "'element' or 'out_channel'; use sparsity instead"
                )
            scores = [self._importance(layer, before) for layer in group]
            for layer, score, kept in zip(group, scores, _ranked(group, scores, last=True), strict=True):
                self._keep_entries(layer, kept.view(score.shape))

    def _keep_entries(self, layer: Layer, kept: Tensor) -> None:
        if self.choice is not None:
            mask = kept.to(layer.weight.dtype)
            self.choice.weights[layer.name] = layer.rule.original(layer.call, mask, layer.weight.shape)

    def _choose_rows(self, layers: list[Layer], scores: list[Tensor]) -> None:
        of = {layer.name: score for layer, score in zip(layers, scores, strict=True)}
        together, alone = by_entry(layers)
        kept: dict[str, Tensor] = {}
        for layer in alone:
            count = share(layer.settings.sparsity, len(of[layer.name]))
            kept[layer.name] = keep_lowest_out(of[layer.name], count)
        for group in together:
            rows = _ranked(group, [of[layer.name] for layer in group], last=False)
            kept |= {layer.name: row for layer, row in zip(group, rows, strict=True)}
        if self.choice is not None:
            self.choice.rows = {name: row for name, row in kept.items() if not bool(row.all())}

    def _insert(self, choice: Choice, flow: Flow, layers: list[Layer]) -> None:
        module = self._bound("choose")
        if any(bool(gone.any()) for gone in choice.units.values()):
            units = self._units(flow, layers)
            pruned = np.zeros(len(units.fixed), dtype=np.bool_)
            for layer in layers:
                if layer.name in choice.units:
                    pruned[units.of(layer.outputs)[choice.units[layer.name].cpu().numpy()]] = True
            mask_units(module, flow, units, pruned)
        masks: dict[str, Tensor] = {}
        for layer in layers:
            if layer.name in choice.weights:
                masks |= layer.masks(module, choice.weights[layer.name])
            if layer.name in choice.rows:
                masks |= layer.row_masks(module, choice.rows[layer.name])
        insert_masks(module, masks)
        if any(layer.weight_name is None for layer in layers):  # masked in the graph, not at a parameter
            module.graph.lint()
            module.recompile()

    def _note(self, notes: list[str]) -> None:
        """Keep new notes with the module and warn of them, once each."""
        module = self._bound("choose")
        new = [note for note in notes if note not in module.notes]
        module.notes = (*module.notes, *new)
        for note in new:
            warnings.warn(f"fxcompress: {note}", stacklevel=5)

    def state_dict(self) -> dict[str, Any]:
        """The base's, and what is masked."""
        choice = self.choice
        return super().state_dict() | {"choice": None if choice is None else vars(choice)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Insert the masks of a checkpoint again."""
        super().load_state_dict(state)
        reset_masks(self._bound("load_state_dict"))
        self.choice = None
        if state["choice"] is not None:
            self.restore(Choice(**state["choice"]))

    def restore(self, choice: Choice) -> None:
        """Insert the masks of a choice made earlier on the same graph."""
        self.choice = choice
        self._insert(choice, *self._analyzed())


class FilterPruner(ScoringPruner):
    """Base of algorithms that rank output channels and nothing smaller: a subclass gives ``score``."""

    @abstractmethod
    def score(self, layer: Layer) -> Tensor:
        """What each output channel is worth, ``[groups · out]``."""

    def importance(self, layer: Layer) -> Tensor:
        """Refuse: there is no such number for a single weight."""
        raise ConfigError(
            f"{layer.name}: granularity {layer.settings.granularity!r}: pruner {self.name!r} ranks whole "
            "output channels; leave granularity out, or choose pruner 'l1' or 'level'"
        )


def by_entry(layers: list[Layer]) -> tuple[list[list[Layer]], list[Layer]]:
    """Layers that share one ``total_sparsity``, group by group; and those that are ranked alone."""
    together: dict[int, list[Layer]] = {}
    for layer in layers:
        if layer.settings.total_sparsity is not None:
            together.setdefault(layer.settings.sources["total_sparsity"], []).append(layer)
    return list(together.values()), [a for a in layers if a.settings.total_sparsity is None]


def _ranked(group: list[Layer], scores: list[Tensor], *, last: bool) -> list[Tensor]:
    """What is kept when the scores of all layers of one entry are ranked together."""
    settings = group[0].settings
    weights = [layer.weight.numel() // score.numel() for layer, score in zip(group, scores, strict=True)]
    total, most = settings.total_sparsity or 0.0, settings.max_sparsity_per_layer
    return choose_global([s.reshape(-1) for s in scores], weights, total, most, last=last)
