"""Sliding windows of convolutions and poolings: strides, dilations and padding from ONNX attributes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fxcompress.runtime.graphs import Array, Node


@dataclass(frozen=True)
class Windows:
    """One entry for each spatial axis. ``pads`` are (before, after); ``positions`` counts the windows.

    With ``ceil_mode`` the last window may reach beyond the padding; ``pads`` hold those places as well.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    positions: tuple[int, ...]

    @staticmethod
    def of(node: Node, spatial: Sequence[int], size: Sequence[int]) -> Windows:
        """The windows of ``node`` over an input of the given spatial shape."""
        rank = len(size)
        strides = tuple(node.attributes.get("strides", (1,) * rank))
        dilations = tuple(node.attributes.get("dilations", (1,) * rank))
        reach = [(k - 1) * d + 1 for k, d in zip(size, dilations, strict=True)]
        ceiling = bool(node.attributes.get("ceil_mode", 0))
        pads, positions = [], []
        for n, r, s, (before, after) in zip(
            spatial, reach, strides, _declared(node, spatial, reach, strides), strict=True
        ):
            room = n + before + after - r
            count = (-(-room // s) if ceiling else room // s) + 1
            if ceiling and (count - 1) * s >= n + before:
                count -= 1  # a window that starts in the padding behind is dropped
            pads.append((before, max(after, (count - 1) * s + r - n - before)))
            positions.append(count)
        return Windows(tuple(size), strides, dilations, tuple(pads), tuple(positions))

    def taps(self, padded: Array) -> Iterator[Array]:
        """For each place of the window, in row-major order, what all windows see there."""
        for place in product(*map(range, self.size)):
            cuts: tuple[Any, ...] = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, s, n in zip(place, self.dilations, self.strides, self.positions, strict=True)
            )
            yield padded[(..., *cuts)]


def _declared(
    node: Node, spatial: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    auto = node.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for n, r, s in zip(spatial, reach, strides, strict=True):
            total = max((-(-n // s) - 1) * s + r - n, 0)
            small, large = total // 2, total - total // 2
            pads.append((small, large) if auto == "SAME_UPPER" else (large, small))
        return pads
    flat = (
        list(node.attributes.get("pads", (0,) * 2 * len(reach))) if auto == "NOTSET" else [0] * 2 * len(reach)
    )
    return list(zip(flat[: len(reach)], flat[len(reach) :], strict=True))
