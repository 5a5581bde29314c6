"""Channel groups: which layers' output channels are chosen together, and how many of them may go.

A channel of one layer that is added to a channel of another can only go with it. Layers are grouped as the
dependency-aware pruners see them (``pruning.units``), with everything they can prune selected.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from fxcompress.config import targets_of_model
from fxcompress.config.registry import PRUNABLE
from fxcompress.config.settings import PruningSettings
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.axes import analyze_axes
from fxcompress.pruning.allocation import foreign_makers
from fxcompress.pruning.layers import find_layers
from fxcompress.pruning.units import find_units


@dataclass(frozen=True)
class ChannelGroup:
    """``channels`` that the same ``layers`` make, ``free`` of which may be pruned; why not the others."""

    layers: tuple[str, ...]
    channels: int
    free: int
    reason: str | None = None


def channel_groups(module: CompiledModule) -> list[ChannelGroup]:
    """The groups of a captured module, in the order of its layers."""
    flow = analyze_axes(module, restrict=True)
    settings = {
        target.name: PruningSettings()
        for target in targets_of_model(module)
        if PRUNABLE.intersection(target.op_types)
    }
    layers, _ = find_layers(module, flow, settings)
    units = find_units(flow)
    makers: dict[int, list[str]] = defaultdict(list)
    for layer in layers:
        for unit in np.unique(units.of(layer.outputs)).tolist():
            makers[unit].append(layer.name)
    foreign = foreign_makers(flow, units, layers)
    classes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for unit, who in makers.items():
        classes[tuple(who)].append(unit)
    groups = []
    for names, members in classes.items():
        stuck = [unit for unit in members if units.fixed[unit] or unit in foreign]
        reasons = (foreign.get(unit) or units.causes.get(unit) for unit in stuck)
        reason = next((why for why in reasons if why), "each is used") if stuck else None
        groups.append(ChannelGroup(names, len(members), len(members) - len(stuck), reason))
    return groups
