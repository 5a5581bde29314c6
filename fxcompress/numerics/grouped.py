"""``GroupFakeQuantize``: the weight of a linear layer, rounded with a scale for every few of its inputs.

    W [out, in]  →  [out · groups, group_size]  →  round every row to its own range  →  Ŵ [out, in]

``groups = ⌈in / group_size⌉``; the last group of a row is filled up with zeros, which are in every range and
change none (Dettmers, Zettlemoyer, The case for 4-bit precision, ICML 2023). Scales and zero points are
``[out · groups]``, those of an output row side by side, as onnxruntime's ``MatMulNBits`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxcompress.errors import FxcompressError
from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import Observer


@storable
class GroupFakeQuantize(FakeQuantize):
    """Rounds ``[out, in]`` over the range at hand of every group; gradients pass straight through."""

    def __init__(self, grid: Grid, group_size: int) -> None:
        """``grid``: of one group; its ``axis`` does not matter."""
        super().__init__(replace(grid, axis=0))
        self.group_size = group_size

    def groups(self, weight: Tensor) -> Tensor:
        """``[out, in]`` as ``[out · groups, group_size]``.

        Raises:
            FxcompressError: if it is no matrix.
        """
        if weight.dim() != 2:
            raise FxcompressError(
                f"weights in groups: expected a matrix [out, in], got shape {tuple(weight.shape)}; quantize "
                "linear layers only"
            )
        return F.pad(weight, (0, -weight.shape[1] % self.group_size)).reshape(-1, self.group_size)

    def observe(self, x: Tensor) -> None:
        """Take the range of every group."""
        super().observe(self.groups(x))

    def simulate(self, x: Tensor) -> Tensor:
        """``x`` with every group on its own grid."""
        rounded = super().simulate(self.groups(x))
        return rounded.reshape(x.shape[0], -1)[:, : x.shape[1]]

    def unsigned(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The integers of ``weight``, ``[out, groups · group_size]``, and the zero points, ``[out, groups]``:
        uint8 from 0 to ``2^bits − 1``. A signed grid is moved up by ``2^(bits − 1)``, which changes no
        difference ``q − z``.
        """
        up = 1 << (self.grid.bits - 1) if self.grid.signed else 0
        integers = self.grid.quantize(self.groups(weight), self.scale, self.zero_point) + up
        zeros = self.zero_point + up
        rows = weight.shape[0]
        return integers.to(torch.uint8).reshape(rows, -1), zeros.to(torch.uint8).reshape(rows, -1)

    def options(self) -> dict[str, Any]:
        """The base's, and the size of a group."""
        return {**super().options(), "group_size": self.group_size}

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> GroupFakeQuantize:
        return cls(grid, int(options["group_size"]))

    def extra_repr(self) -> str:
        """``4-bit unsigned affine, in groups of 32``."""
        return f"{super().extra_repr().partition(', ')[0]}, in groups of {self.group_size}"
