"""Cross-layer equalization: neighbouring layers share out their ranges, so that few bits hold both.

    s_i = √(r1_i · r2_i) / r2_i        W1[i, :] / s_i,   b1_i / s_i,   W2[:, i] · s_i

``r1_i`` is the largest magnitude in row ``i`` of the first weight, ``r2_i`` in column ``i`` of the second;
both are ``√(r1_i · r2_i)`` afterwards (Nagel et al., Data-Free Quantization through Weight Equalization and
Bias Correction, ICCV 2019, section 4.1, eq. 11). Layers in a row are gone through until nothing moves. The
float function stays what it was (``passes.rescale``). Of several readers the largest column counts. Meant
for weights with one scale each: where every output channel has its own, only activations gain by it, and the
rows of few bits may lose.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, fx

from fxcompress.graph.constants import Reading
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.links import Link, label, link_behind
from fxcompress.passes.rescale import canonical_weight, column_ranges, rescale, row_ranges
from fxcompress.quantization.outcome import Outcome

SETTLED = 1e-3
"""Largest relative change of a factor at which ranges count as settled."""
SWEEPS = 100


def equalize(module: CompiledModule, layers: Collection[fx.Node]) -> Outcome:
    """Equalize the ranges of ``layers`` (calls of convolutions and linear layers), where links join them."""
    reading = Reading(module)
    links: list[Link] = []
    refused: list[tuple[str, str]] = []
    for node in layers:
        link = link_behind(module, node, reading)
        if isinstance(link, Link) and not set(link.readers) <= set(layers):
            link = "a layer that is not quantized reads it"
        if isinstance(link, Link):
            links.append(link)
        else:
            refused.append((label(node), link))
    changed: dict[str, None] = {}
    for link, factors in zip(links, settled_factors(module, links), strict=True):
        changed |= dict.fromkeys(rescale(module, link, factors))
    return Outcome(tuple(map(str, links)), tuple(refused), tuple(changed))


def settled_factors(module: CompiledModule, links: Sequence[Link]) -> list[Tensor]:
    """The factors of every link, float64 ``[channels]``, once going through them changes nothing more."""
    nodes = dict.fromkeys(node for link in links for node in (link.maker, *link.readers))
    weights = {node: canonical_weight(module, node) for node in nodes}
    total = [weights[link.maker].new_ones(link.channels) for link in links]
    for _ in range(SWEEPS):
        largest = 0.0
        for index, link in enumerate(links):
            made, read = weights[link.maker], [weights[reader] for reader in link.readers]
            factors = equalizing(row_ranges(made), torch.stack([column_ranges(w) for w in read]).amax(0))
            weights[link.maker] = made / factors.view(*made.shape[:2], 1, 1)
            for reader, weight in zip(link.readers, read, strict=True):
                weights[reader] = weight * factors.view(weight.shape[0], 1, -1, 1)
            total[index] = total[index] * factors
            largest = max(largest, float(factors.log().abs().max()))
        if largest <= SETTLED:
            break
    return total


def equalizing(r1: Tensor, r2: Tensor) -> Tensor:
    """``s`` of the ranges of each channel; 1 for one that is made or read with zeros alone."""
    return torch.where((r1 > 0) & (r2 > 0), (r1 * r2).sqrt() / r2, 1.0)
