"""Which entries of a weight go together: single ones, blocks, N of M neighbours, input channels.

Weights are seen as ``[groups, out, in, taps]`` (``rules/contraction.py``). Every granularity is a way to cut
that into pieces of equal standing; the pieces of the smallest summed importance are masked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress.config.values import Granularity
from fxcompress.errors import ConfigError
from fxcompress.pruning.layers import keep_lowest_out, share

ELEMENTWISE = frozenset(("element", "row", "in_channel", "2:4"))


def is_elementwise(granularity: Granularity) -> bool:
    """Whether masks of this granularity cut a weight other than into output channels."""
    return granularity in ELEMENTWISE or isinstance(granularity, tuple)


def kept_entries(importance: Tensor, granularity: Granularity, sparsity: float, layer: str) -> Tensor:
    """Which entries stay, ``bool`` of ``importance``'s shape ``[groups, out, in, taps]``.

    ``floor(sparsity · n)`` of the ``n`` pieces go, ties to the lower index; with ``"row"`` that many of the
    ``n`` weights of every output. ``"2:4"`` keeps the two largest
    of every four neighbours along the input (NVIDIA's structured sparsity), whatever ``sparsity`` is but 0.

    Raises:
        ConfigError: if the weight cannot be cut like this.
    """
    if sparsity == 0:
        return torch.ones_like(importance, dtype=torch.bool)
    if granularity == "2:4":
        return _two_of_four(importance, layer)
    if granularity == "row":
        rows = importance.flatten(0, 1).flatten(1)
        rank = rows.argsort(dim=1, stable=True).argsort(1)
        return (rank >= share(sparsity, rows.shape[1])).reshape(importance.shape)
    if granularity == "in_channel":
        pieces = importance.sum((1, 3), keepdim=True)
    elif isinstance(granularity, tuple):
        pieces = _blocks(importance, granularity, layer)
    else:
        pieces = importance
    kept = keep_lowest_out(pieces, share(sparsity, pieces.numel())).to(importance.device)
    if isinstance(granularity, tuple):
        out, inner = _block_size(granularity)
        kept = kept.repeat_interleave(out, 1).repeat_interleave(inner, 2)
        kept = kept[:, : importance.shape[1], : importance.shape[2]]
    return kept.expand(importance.shape)


def _two_of_four(importance: Tensor, layer: str) -> Tensor:
    groups, out, inner, taps = importance.shape
    if inner % 4:
        raise ConfigError(
            f"granularity '2:4': {layer!r} has {inner} input channels per group, which is no multiple of 4; "
            "exclude it or choose another granularity"
        )
    fours = importance.reshape(groups, out, inner // 4, 4, taps)
    rank = fours.argsort(dim=3, stable=True).argsort(3)
    return (rank >= 2).reshape(importance.shape)


def _block_size(granularity: tuple[int, ...]) -> tuple[int, int]:
    return (1, granularity[0]) if len(granularity) == 1 else (granularity[0], granularity[1])


def _blocks(importance: Tensor, granularity: tuple[int, ...], layer: str) -> Tensor:
    """The mean importance of blocks of outputs × inputs (all taps); those at the edges may be smaller."""
    if len(granularity) > 2:
        raise ConfigError(
            f"granularity {list(granularity)}: {layer!r}: expected a block of outputs and inputs such as "
            "[4, 4]; write two numbers"
        )
    out, inner = _block_size(granularity)
    groups, rows, columns, _ = importance.shape
    padding = (0, -columns % inner, 0, -rows % out)
    summed = F.pad(importance.sum(3), padding)
    count = F.pad(torch.ones_like(importance[..., 0]), padding)

    def total(x: Tensor) -> Tensor:
        return x.reshape(groups, x.shape[1] // out, out, x.shape[2] // inner, inner).sum((2, 4))

    return (total(summed) / total(count)).unsqueeze(3)
