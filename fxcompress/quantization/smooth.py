"""SmoothQuant: outliers of activations move into the weights, which hold them better.

    s_j = max|X_j|^α / max|W_j|^(1 − α)        X_j / s_j,   W[:, j] · s_j

``X_j`` is input feature ``j`` of linear layers over the data, ``W_j`` column ``j`` of their weights, of all
those that read the same tensor (q, k and v) together (Xiao et al., SmoothQuant, ICML 2023, eq. 4). The float
function stays what it was. Where a normalization or linear layer makes the tensor for linear layers alone,
the division is folded into it, and nothing is added to the graph. Behind a normalization that a residual
reads as well, and behind GELU and the like, a product with ``1 / s`` stays in front of the rounding
(``passes.rescale``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import Reading
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.links import NORMS, Link, activation, label, link_behind, maker_of, obstacle, weighted
from fxcompress.passes.observe import insert_observers, remove_observers
from fxcompress.passes.rescale import canonical_weight, column_ranges, multiply, rescale
from fxcompress.quantization.outcome import Outcome

LINEAR = frozenset({"linear", "addmm"})
MULTIPLIED = NORMS | {"gelu", "silu", "mish", "elu", "hardswish", "mul"}
"""Behind these outliers are worth a product that stays. Not behind attention: it averages them away."""


@dataclass(frozen=True)
class _Place:
    """``source``, read by linear layers ``readers``; ``link``: where the division is folded, if it can be."""

    source: fx.Node
    readers: tuple[fx.Node, ...]
    link: Link | None = None

    def __str__(self) -> str:
        readers = ", ".join(map(label, self.readers))
        return str(self.link) if self.link else f"{label(self.source)} · 1/s → {readers}"


def smooth(
    module: CompiledModule, layers: Collection[fx.Node], run: Callable[[], None], alpha: float = 0.5
) -> Outcome:
    """Smooth the inputs of ``layers`` (calls of linear layers).

    Args:
        run: runs the module on the data, in eval mode.
        alpha: how much of the outliers moves: 0 equalizes the weights, 1 the activations.
    """
    reading = Reading(module)
    places: dict[fx.Node, _Place] = {}
    refused: list[tuple[str, str]] = []
    for node in layers:
        place = _place(module, node, layers, reading)
        if isinstance(place, str):
            refused.append((label(node), place))
        else:
            places.setdefault(place.link.maker if place.link else place.source, place)
    ordered = [places[node] for node in module.graph.nodes if node in places]
    maxima = _maxima(module, ordered, run)
    changed: dict[str, None] = {}
    for place in ordered:
        columns = [column_ranges(canonical_weight(module, reader)) for reader in place.readers]
        largest = maxima[place.source].to(columns[0].device)
        factors = smoothing(largest, torch.stack(columns).amax(0), alpha)
        if place.link is not None:
            changed |= dict.fromkeys(rescale(module, place.link, factors))
        else:
            changed |= dict.fromkeys(multiply(module, place.source, place.readers, factors))
    return Outcome(tuple(map(str, ordered)), tuple(refused), tuple(changed))


def smoothing(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``s`` of the largest magnitudes of each channel, float64; 1 where one of them is 0."""
    factors = activations.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((activations > 0) & (weights > 0), factors, 1.0)


def _place(
    module: CompiledModule, node: fx.Node, layers: Collection[fx.Node], reading: Reading
) -> _Place | str:
    """Where the input of ``node`` is smoothed, or the reason why it is not."""
    maker, source = maker_of(node), _input(node)
    if maker is None or source is None:
        return "nothing computed is in front of it"
    link = link_behind(module, maker, reading)
    if isinstance(link, Link):
        others = [reader for reader in link.readers if not is_linear(reader)]
        if not others:
            return _Place(_input(link.readers[0]) or maker, link.readers, link)
        link = f"{label(others[0])} reads the same tensor and is no linear layer"
    call = call_of(maker)
    if call is None or call.op not in MULTIPLIED:
        return link
    readers = tuple(reader for reader in source.users if reader in layers and _input(reader) is source)
    obstacles = (obstacle(module, r, found[1].weight, reading) for r in readers if (found := weighted(r)))
    return next(filter(None, obstacles), None) or _Place(source, readers)


def _input(node: fx.Node) -> fx.Node | None:
    """What a layer works on."""
    found = weighted(node)
    return None if found is None else activation(found[0])


def is_linear(node: fx.Node) -> bool:
    """Whether a node is the call of a linear layer."""
    call = call_of(node)
    return call is not None and call.op in LINEAR


def _maxima(
    module: CompiledModule, places: Collection[_Place], run: Callable[[], None]
) -> dict[fx.Node, Tensor]:
    """Largest magnitude of every channel of each source over the data."""
    found = {place.source: torch.zeros((), dtype=torch.float64) for place in places}

    def looking(source: fx.Node) -> Callable[[Tensor], None]:
        def look(x: Tensor) -> None:
            largest = x.abs().flatten(0, -2).amax(0).double().cpu()
            found[source] = torch.maximum(found[source], largest)

        return look

    insert_observers(module, {source.name: (source.name, looking(source)) for source in found})
    try:
        run()
    finally:
        remove_observers(module)
    return found
