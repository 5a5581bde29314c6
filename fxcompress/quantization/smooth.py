"""SmoothQuant: outliers of activations move into the weights, which hold them better.

    s_j = max|X_j|^α / max|W_j|^(1 − α)        X_j / s_j,   W[:, j] · s_j

``X_j`` is input feature ``j`` of linear layers over the data, ``W_j`` column ``j`` of their weights, of all
those that read the same tensor (q, k and v) together (Xiao et al., SmoothQuant, ICML 2023, eq. 4). The
division is folded into the normalization or linear layer that makes the tensor, so that the float function
stays what it was and nothing is added to the graph (``passes.rescale``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, fx

from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import Reading
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.links import Link, activation, label, link_behind, maker_of, weighted
from fxcompress.passes.observe import insert_observers, remove_observers
from fxcompress.passes.rescale import canonical_weight, column_ranges, rescale
from fxcompress.quantization.outcome import Outcome

LINEAR = frozenset({"linear", "addmm"})


def smooth(
    module: CompiledModule, layers: Collection[fx.Node], run: Callable[[], None], alpha: float = 0.5
) -> Outcome:
    """Smooth the inputs of ``layers`` (calls of linear layers).

    Args:
        run: runs the module on the data, in eval mode.
        alpha: how much of the outliers moves: 0 equalizes the weights, 1 the activations.
    """
    reading = Reading(module)
    links: dict[fx.Node, Link] = {}
    refused: list[tuple[str, str]] = []
    for node in layers:
        link = _link(module, node, reading)
        if isinstance(link, Link):
            links[link.maker] = link
        else:
            refused.append((label(node), link))
    ordered = [links[node] for node in module.graph.nodes if node in links]
    maxima = _maxima(module, ordered, run)
    changed: dict[str, None] = {}
    for link in ordered:
        columns = [column_ranges(canonical_weight(module, reader)) for reader in link.readers]
        factors = smoothing(maxima[link.maker].to(columns[0].device), torch.stack(columns).amax(0), alpha)
        changed |= dict.fromkeys(rescale(module, link, factors))
    return Outcome(tuple(map(str, ordered)), tuple(refused), tuple(changed))


def smoothing(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """``s`` of the largest magnitudes of each channel, float64; 1 where one of them is 0."""
    factors = activations.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((activations > 0) & (weights > 0), factors, 1.0)


def _link(module: CompiledModule, node: fx.Node, reading: Reading) -> Link | str:
    maker = maker_of(node)
    if maker is None:
        return "nothing computed is in front of it"
    found = link_behind(module, maker, reading)
    others = [] if isinstance(found, str) else [r for r in found.readers if not is_linear(r)]
    return f"{label(others[0])} reads the same tensor and is no linear layer" if others else found


def is_linear(node: fx.Node) -> bool:
    """Whether a node is the call of a linear layer."""
    call = call_of(node)
    return call is not None and call.op in LINEAR


def _maxima(
    module: CompiledModule, links: Collection[Link], run: Callable[[], None]
) -> dict[fx.Node, Tensor]:
    """Largest magnitude of every channel of each link over the data, by its maker."""
    found = {link.maker: torch.zeros(link.channels, dtype=torch.float64) for link in links}

    def looking(maker: fx.Node) -> Callable[[Tensor], None]:
        def look(x: Tensor) -> None:
            largest = x.abs().flatten(0, -2).amax(0).double().cpu()
            found[maker] = torch.maximum(found[maker], largest)

        return look

    places = {}
    for link in links:
        layer = weighted(link.readers[0])
        source = None if layer is None else activation(layer[0])
        if source is not None:
            places[str(link.maker)] = (source.name, looking(link.maker))
    insert_observers(module, places)
    try:
        run()
    finally:
        remove_observers(module)
    return found
