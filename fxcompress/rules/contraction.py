"""What convolution and linear rules share: sums of weight × channel, with the channels that may be dropped.

Channel ``i`` of the input may go when every kept output reads it through a zero weight, or when it is a
constant ``c_i`` whose contribution can be kept:

    Σ_i W[:, i] · x_i  =  Σ_kept W[:, i] · x_i  +  Σ_removed W[:, i] · c_i

The second sum is a constant for a linear layer or an unpadded convolution: it is added to the bias. Zero
padding makes it vary at the borders, but there it equals a convolution of *any* constant channel ``k`` with
weights ``Σ_removed W[:, i] · c_i / c_k``: one channel (the carrier) stays and takes the others' part, at
every resolution.

Weights are seen as ``[groups, out, in, taps]``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call
from fxcompress.rules.axes import Bools, Contraction
from fxcompress.rules.registry import Rule
from fxcompress.rules.values import Values


@dataclass(frozen=True)
class Need:
    """``matrix[g, o, i]``: output ``o`` of group ``g`` needs input ``i`` of that group (``None``: every
    output needs every input of its group); ``inner[g · in + i]``: the input may be needed at all."""

    inner: Bools
    matrix: Bools | None
    groups: int = 1

    def of(self, outer: Bools | None) -> Bools:
        """The input slices needed when ``outer`` is kept of the output (``None``: all of it)."""
        if self.matrix is None:
            alive = (
                np.ones(self.groups, dtype=np.bool_)
                if outer is None
                else outer.reshape(self.groups, -1).any(1)
            )
            return np.repeat(alive, len(self.inner) // self.groups) & self.inner
        groups, out, _ = self.matrix.shape
        reading = self.matrix if outer is None else self.matrix & outer.reshape(groups, out, 1)
        needed: Bools = reading.any(1).reshape(-1) & self.inner
        return needed


def nonzero(contraction: Contraction, values: Values) -> Need:
    """What a plain sum needs: the slices that are not zero."""
    zero = values.zero(contraction.source, contraction.dim)
    return Need(np.ones(contraction.inner.size, dtype=np.bool_) if zero is None else ~zero.numpy(), None)


@dataclass(frozen=True)
class Weighted:
    """A contraction with known weights: ``weight`` is ``[groups, out, in, taps]``."""

    weight: Tensor
    constants: Tensor | None
    """Constants of the input channels, ``[groups · in]``, NaN where not constant."""
    uniform: bool
    """Whether a constant channel contributes a constant (no padding), so that a bias can hold it."""
    editable: bool
    """Whether this call may change its weight and bias (they belong to no other call)."""

    @functools.cached_property
    def reads(self) -> Bools | None:
        """``[groups, out, in]``: a weight that is not zero; ``None`` if all are."""
        found = self.weight.any(-1)
        return None if bool(found.all()) else found.cpu().numpy()

    @functools.cached_property
    def need(self) -> Need:
        """Which inputs must stay for which outputs."""
        groups, _, inputs, _ = self.weight.shape
        if self.constants is None:
            return Need(np.ones(groups * inputs, dtype=np.bool_), self.reads, groups)
        droppable = self._droppable().numpy()
        matrix = self.reads
        if matrix is not None and self._carries:
            # The carrier is read wherever one of the channels it stands for is.
            carried = droppable & (self.constants != 0).numpy()
            matrix = matrix.copy()
            matrix[0, :, self.carrier()] |= matrix[0][:, carried].any(1)
        return Need(~droppable, matrix, groups)

    @property
    def _carries(self) -> bool:
        """Whether constant channels may go at the price of one carrier."""
        return self.editable and not self.uniform and self.weight.shape[0] == 1

    def _droppable(self) -> Tensor:
        if self.constants is None:
            return torch.zeros(self.weight.shape[0] * self.weight.shape[2], dtype=torch.bool)
        zero = self.constants == 0
        if not self.editable:
            return zero
        constant = ~self.constants.isnan()
        if not self.uniform:
            if not self._carries:
                return zero
            constant = constant.clone()
            constant[self.carrier()] = False
            return constant | zero
        return constant

    def carrier(self) -> int:
        """The constant channel of the largest magnitude, to stand for the others under padding."""
        if self.constants is None:
            return 0
        return int(self.constants.nan_to_num().abs().argmax())

    def outputs(self, bias: Tensor | None) -> Tensor | None:
        """Constants of the output channels: all inputs they read are constant and contribute uniformly."""
        if self.constants is None and self.reads is None:
            return None
        groups, out, inputs, _ = self.weight.shape
        reads = np.ones((groups, out, inputs), dtype=np.bool_) if self.reads is None else self.reads
        given = None
        if self.constants is not None:
            known = ~self.constants.isnan() if self.uniform else self.constants == 0
            reads = reads & ~known.view(groups, 1, inputs).numpy()
            given = torch.where(known, self.constants, 0.0)
        constant = ~reads.any(-1).reshape(-1)
        if not constant.any():
            return None
        result = torch.zeros(groups * out, dtype=torch.float64)
        if given is not None and bool((given != 0).any()):
            result = self._contribution(given)
        if bias is not None:
            result = result + bias.to(torch.float64)
        return torch.where(torch.from_numpy(constant), result, torch.nan)

    def _contribution(self, given: Tensor) -> Tensor:
        """``Σ_i W[:, i] · given_i`` over all taps, float64 ``[groups · out]``;
        only non-zero inputs are read.
        """
        groups, out, inputs, _ = self.weight.shape
        values = given.view(groups, inputs)
        columns = (values != 0).any(0).nonzero().flatten()
        taps = self.weight.index_select(2, columns).to(torch.float64).sum(-1)
        return torch.einsum("goi,gi->go", taps, values.index_select(1, columns)).reshape(groups * out)

    def folded(self, removed: Tensor) -> Tensor | None:
        """What the removed channels add to each output (float64 ``[groups · out]``); ``None`` if nothing."""
        given = self._given(removed)
        return None if given is None else self._contribution(given)

    def carried(self, removed: Tensor) -> tuple[int, Tensor] | None:
        """The carrier and what is added to its weight (float64 ``[1, out,
        taps]``) for the removed channels.
        """
        given = self._given(removed) if self._carries else None
        if given is None or self.constants is None:
            return None
        carrier = self.carrier()
        added = torch.einsum("goit,i->got", self.weight.to(torch.float64), given / self.constants[carrier])
        return carrier, added

    def _given(self, removed: Tensor) -> Tensor | None:
        if self.constants is None:
            return None
        given = torch.where(removed, self.constants.nan_to_num(), 0.0)
        return given if bool((given != 0).any()) else None


def editable(values: Values, *parameters: Any) -> bool:
    """Plain parameters (or ones under masks only) of one call."""
    sources = [values.baked(p) for p in parameters if p is not None]
    return all(s is not None for s in sources) and values.unshared(*sources)


class WeightedRule(Rule):
    """Base of the operators that sum weight × channel."""

    weight, bias = "weight", "bias"
    """The names of the operands."""

    def canonical(self, call: Call, weight: Tensor) -> Tensor:
        """The weight as ``[groups, out per group, in per group, taps]``."""
        raise NotImplementedError(type(self).__name__)

    def original(self, call: Call, canonical: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``canonical``."""
        raise NotImplementedError(type(self).__name__)
