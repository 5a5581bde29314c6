"""How many units each layer loses, and which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxcompress.pruning.layers import Layer, keep_lowest_out, share
from fxcompress.pruning.units import Units
from fxcompress.rules.axes import Bools, Ints
from fxcompress.rules.contraction import WeightedRule
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import rule_for

Floats = NDArray[np.float64]
_GROUP_SCORES = {"sum": np.add, "mean": np.add, "max": np.maximum}


def normalized(scores: Tensor) -> Tensor:
    """Scores over their mean, so that layers of different scale can be compared and summed."""
    mean = scores.mean()
    return scores / mean if bool(mean > 0) else scores


def choose_units(
    flow: Flow,
    units: Units,
    layers: list[Layer],
    scores: list[Tensor],
    group_score: str = "sum",
    lost: Mapping[tuple[str, ...], int] | None = None,
) -> tuple[Bools, list[str], dict[tuple[str, ...], int]]:
    """The units to prune (``bool[units]``), notes on layers that cannot lose channels, and how many units
    each class of layers (by their names) loses.

    A unit is eligible if no operator needs it whole and every layer that makes it is selected. Eligible
    units made by the same layers are ranked together by the sum (``group_score``: or mean, or maximum) of
    the scores of their channels; of ``n`` of them ``floor(s · n)`` go, ``s`` being the smallest sparsity of
    these layers. Every axis keeps its ``least``. What a class has ``lost`` before counts in ``n`` and in what
    goes.
    """
    number = len(units.fixed)
    total, count = np.zeros(number), np.zeros(number)
    makers: dict[int, list[int]] = defaultdict(list)
    for index, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        labels = units.of(layer.outputs)
        _GROUP_SCORES[group_score].at(total, labels, score.double().cpu().numpy())
        np.add.at(count, labels, 1)
        for unit in np.unique(labels).tolist():
            makers[unit].append(index)
    if group_score == "mean":
        total /= np.maximum(count, 1)
    foreign = foreign_makers(flow, units, layers)
    classes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for unit in sorted(makers):
        classes[tuple(makers[unit])].append(unit)
    pruned = np.zeros(number, dtype=np.bool_)
    tables = _Tables(flow, units, list(makers))
    notes: dict[int, str] = {}
    for who, members in classes.items():
        eligible = [u for u in members if not units.fixed[u] and u not in foreign]
        if not eligible:
            why = next((foreign[u] for u in members if u in foreign), None)
            if why is None:
                cause = next((units.causes[u] for u in members if u in units.causes), "each is used")
                why = f"its channels must all stay: {cause}"
            for index in who:
                notes.setdefault(index, f"{layers[index].name}: not pruned: {why}")
            continue
        gone = (lost or {}).get(tuple(layers[i].name for i in who), 0)
        going = max(_share(who, layers, len(eligible) + gone) - gone, 0)
        _prune_lowest(tables, np.asarray(eligible), total, going, pruned)
    _choose_totals(tables, units, layers, total, foreign, pruned)
    touched = {i for unit in np.flatnonzero(pruned).tolist() for i in makers[unit]}
    removed = Counter(tuple(layers[i].name for i in makers[unit]) for unit in np.flatnonzero(pruned).tolist())
    return pruned, [note for index, note in sorted(notes.items()) if index not in touched], dict(removed)


class _Tables:
    """Which units every axis consists of, to see to it that each keeps the slices it must."""

    def __init__(self, flow: Flow, units: Units, made: list[int]) -> None:
        """``made``: the units that may be pruned (an axis of a flattened weight has a million others)."""
        self._axes: list[tuple[Ints, Ints, int]] = []  # units, how many slices each has, how many must stay
        self.of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        """unit → the axes it is part of (by index), with its number of slices there."""
        least = {id(axis): axis.least for axis in flow.map.roots()}
        prunable = np.zeros(len(units.fixed), dtype=np.bool_)
        prunable[made] = True
        for index, (key, labels) in enumerate(units.labels.items()):
            members, counts = np.unique(labels, return_counts=True)
            self._axes.append((members, counts, least[key]))
            mine = prunable[members]
            for unit, count in zip(members[mine].tolist(), counts[mine].tolist(), strict=True):
                self.of[unit].append((index, count))

    def room(self, pruned: Bools) -> list[int]:
        """How many more slices each axis may lose."""
        return [int(counts[~pruned[units]].sum()) - least for units, counts, least in self._axes]

    def short(self, pruned: Bools, candidates: Ints) -> Ints:
        """The units of the first axis that would keep fewer slices than it must, none if there is no such."""
        for index in sorted({index for unit in candidates.tolist() for index, _ in self.of[unit]}):
            units, counts, least = self._axes[index]
            if counts[~pruned[units]].sum() < least:
                return units
        return np.zeros(0, dtype=np.int64)


def _prune_lowest(tables: _Tables, eligible: Ints, total: Floats, count: int, pruned: Bools) -> None:
    """Prune the ``count`` lowest-scoring eligible units, sparing the best where an axis falls short."""
    while len(eligible):
        gone = eligible[
            ~keep_lowest_out(torch.from_numpy(total[eligible]), min(count, len(eligible))).numpy()
        ]
        trial = pruned.copy()
        trial[gone] = True
        short = tables.short(trial, gone)
        own = short[np.isin(short, gone)]
        if not len(own):
            pruned[:] = trial
            return
        eligible = eligible[eligible != own[int(total[own].argmax())]]


def _share(who: tuple[int, ...], layers: list[Layer], count: int) -> int:
    given = [layers[i].settings.sparsity for i in who]
    known = [s for s in given if s is not None]
    return share(min(known), count) if len(known) == len(given) else 0


def foreign_makers(flow: Flow, units: Units, layers: list[Layer]) -> dict[int, str]:
    """Units made by a layer that the config does not select → which."""
    chosen = {str(layer.call.node) for layer in layers}
    weights = {p for layer in layers for p in flow.parameters_of(layer.call.args[layer.rule.weight])}
    foreign: dict[int, str] = {}
    for contraction in flow.map.contractions:
        call, outer = contraction.call, contraction.outer
        if outer is None or str(call.node) in chosen or id(outer.find()) not in units.labels:
            continue
        rule = rule_for(call)
        if isinstance(rule, WeightedRule) and weights.intersection(
            flow.parameters_of(call.args[rule.weight])
        ):
            continue
        for unit in np.unique(units.of(outer)).tolist():
            name = call.module or str(call.node)
            foreign.setdefault(
                unit, f"its channels are tied to those of {name!r}, which the config does not select"
            )
    return foreign


def _choose_totals(
    tables: _Tables, units: Units, layers: list[Layer], total: Floats, foreign: dict[int, str], pruned: Bools
) -> None:
    """Rank the eligible units of all layers of one ``total_sparsity`` entry together."""
    entries: dict[int, list[Layer]] = defaultdict(list)
    for layer in layers:
        if layer.settings.total_sparsity is not None:
            entries[layer.settings.sources["total_sparsity"]].append(layer)
    for group in entries.values():
        budget = sum(layer.weight.numel() for layer in group) * (group[0].settings.total_sparsity or 0.0)
        left: list[int] = []
        rows: dict[int, list[tuple[int, int]]] = defaultdict(list)  # unit → layers it has rows of, how many
        weights: dict[int, float] = defaultdict(float)
        for index, layer in enumerate(group):
            labels = units.of(layer.outputs)
            most = layer.settings.max_sparsity_per_layer
            left.append(share(1.0 if most is None else most, len(labels)))
            found, counts = np.unique(labels, return_counts=True)
            for unit, count in zip(found.tolist(), counts.tolist(), strict=True):
                rows[unit].append((index, count))
                weights[unit] += count * layer.weight.numel() / len(labels)
        candidates = [u for u in rows if not units.fixed[u] and u not in foreign]
        everywhere = tables.room(pruned)
        for unit in sorted(candidates, key=lambda u: (total[u] / len(rows[u]), u)):
            fits = all(count <= left[at] for at, count in rows[unit])
            fits = fits and all(count <= everywhere[axis] for axis, count in tables.of[unit])
            if weights[unit] > budget or not fits:
                continue
            budget -= weights[unit]
            for at, count in rows[unit]:
                left[at] -= count
            for axis, count in tables.of[unit]:
                everywhere[axis] -= count
            pruned[unit] = True


def choose_global(
    scores: list[Tensor], weights: list[int], total: float, most: float | None, *, last: bool = False
) -> list[Tensor]:
    """Per layer the pieces kept (``bool``) when the pieces of all layers are ranked together.

    ``weights`` is the number of weights per piece of each layer. Pieces go, lowest score first and ties to
    the earlier layer and index, until the next one would exceed ``total`` of all weights; no layer loses
    more than ``most`` of its pieces, nor its last one unless ``last``.
    """
    open_to_go = []
    for score in scores:
        limit = share(1.0 if most is None else most, len(score))
        eligible = ~keep_lowest_out(score, limit if last else min(limit, len(score) - 1))
        open_to_go.append(torch.where(eligible, score.double().cpu(), torch.inf))
    flat = torch.cat(open_to_go)
    size = torch.cat(
        [torch.full((len(s),), w, dtype=torch.float64) for s, w in zip(scores, weights, strict=True)]
    )
    order = torch.argsort(flat, stable=True)
    fits = (size[order].cumsum(0) <= total * size.sum() + 1e-9) & flat[order].isfinite()
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[order[fits]] = False
    return list(kept.split([len(s) for s in scores]))
