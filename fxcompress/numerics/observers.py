"""Observers: what range of values a tensor has, from what has been seen of it.

An observer looks at tensors (``update``) and says from which ``low`` to which ``high`` numbers are to be told
apart (``range``); ``Grid.parameters`` makes a scale and a zero point of it, and values outside are clipped.
Observers have no state of their own: it is a dict of tensors that the caller keeps (as buffers, so that a
checkpoint holds it), empty tensors before anything was seen.

| name | range | source |
|---|---|---|
| ``minmax`` | all that was seen | Jacob et al., CVPR 2018 |
| ``fixed`` | known: that of a sigmoid | – |
| ``last`` | that of the tensor seen last | Jacob et al., CVPR 2018, for weights |
| ``moving_average`` | ``m ← d·m + (1 − d)·min(x)``, likewise max; d = 0.99 | Jacob et al., CVPR 2018 |
| ``percentile`` | all but the outer shares of a histogram | McKinstry et al. 2018 |
| ``mse`` | the clipped range with the least squared error | Banner et al., NeurIPS 2019 |
| ``entropy`` | the one whose distribution diverges least (Kullback–Leibler) | Migacz, GTC 2017 |
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fxcompress.errors import FxcompressError
from fxcompress.numerics.grid import Grid

State = Mapping[str, Tensor]


def extremes(x: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Smallest and largest finite value of ``x``, or of each slice along ``axis``, in float32."""
    if torch.compiler.is_compiling():  # a look at the values would interrupt it
        return _ends(_finite(x), axis)
    low, high = _ends(x, axis)
    width = low.item() - high.item() if axis is None else (low - high).sum().item()
    if not math.isfinite(width):  # the −inf of an attention mask is no range
        low, high = _ends(_finite(x), axis)
    return low, high


def _finite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _ends(x: Tensor, axis: int | None) -> tuple[Tensor, Tensor]:
    if axis is None:
        low, high = torch.aminmax(x)
    else:
        rows = x if axis == 0 else x.movedim(axis, 0)
        low, high = torch.aminmax(rows.flatten(1), dim=1)
    return low.float(), high.float()


class Observer(ABC):
    """Collects the range of a tensor: of all of it, or of each slice of ``grid.axis``.

    The state holds ``low`` and ``high``, float32, ``[]`` or ``[slices]``.
    """

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]] = ("low", "high")
    """Names of the tensors it keeps."""
    costly: ClassVar[bool] = False
    """Whether the range takes a search, so that it is chosen once everything was seen."""

    @abstractmethod
    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """The state once ``x`` (detached, not empty) was seen as well."""

    def range(self, state: State, grid: Grid) -> tuple[Tensor, Tensor]:
        """The range to tell apart.

        Raises:
            FxcompressError: if nothing was seen.
        """
        if not state["low"].numel():
            raise FxcompressError("nothing was observed yet: run the model on data before its range is used")
        return state["low"], state["high"]


def _first(state: State) -> bool:
    return not state["low"].numel()


@final
@dataclass(frozen=True)
class LastObserver(Observer):
    """The range of the tensor seen last: for weights, which are seen whole."""

    name = "last"

    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Take its range."""
        low, high = extremes(x, grid.axis)
        return {"low": low, "high": high}


@final
@dataclass(frozen=True)
class FixedObserver(Observer):
    """A range that is known: from 0 to 1 behind a sigmoid."""

    name = "fixed"
    lowest: float = 0.0
    highest: float = 1.0

    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """The known range."""
        return {"low": x.new_tensor(self.lowest).float(), "high": x.new_tensor(self.highest).float()}


@final
@dataclass(frozen=True)
class MinMaxObserver(Observer):
    """Everything that was seen lies in the range."""

    name = "minmax"

    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Widen the range."""
        low, high = extremes(x, grid.axis)
        if not _first(state):
            low, high = torch.minimum(state["low"], low), torch.maximum(state["high"], high)
        return {"low": low, "high": high}


@final
@dataclass(frozen=True)
class MovingAverageObserver(Observer):
    """``low ← decay · low + (1 − decay) · min(x)``, and ``high`` likewise; the first batch sets both."""

    name = "moving_average"
    decay: float = 0.99

    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Move the range towards that of ``x``."""
        low, high = extremes(x, grid.axis)
        if not _first(state):
            low, high = state["low"].lerp(low, 1 - self.decay), state["high"].lerp(high, 1 - self.decay)
        return {"low": low, "high": high}


@dataclass(frozen=True)
class HistogramObserver(Observer):
    """Base of those that choose a range by how often which values occur.

    ``counts`` (float32 ``[2 · bins]``) is a histogram from ``−bound`` to ``bound``. Where a batch exceeds it,
    bins are joined by twos until it fits. One range for the whole tensor.
    """

    bins: int = 2048
    state = ("low", "high", "counts", "bound")
    costly = True

    def update(self, state: State, x: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Count the values of ``x``."""
        values = x.flatten().float()
        low, high = extremes(values)
        largest = torch.maximum(-low, high)
        if _first(state):
            counts, bound = values.new_zeros(2 * self.bins), largest
        else:
            low, high = torch.minimum(state["low"], low), torch.maximum(state["high"], high)
            counts, bound = state["counts"], state["bound"]
            bound = bound if bool(bound > 0) else largest
        while bool(largest > bound):
            joined = counts.view(-1, 2).sum(1)
            quarter = joined.new_zeros(self.bins // 2)
            counts, bound = torch.cat([quarter, joined, quarter]), bound * 2
        if bool(bound > 0):
            edge = float(bound)
            counts = counts + torch.histc(values[values.isfinite()], 2 * self.bins, -edge, edge)
        return {"low": low, "high": high, "counts": counts, "bound": bound}

    def range(self, state: State, grid: Grid) -> tuple[Tensor, Tensor]:
        """The chosen range, within what was seen."""
        low, high = super().range(state, grid)
        if not bool(state["bound"] > 0):
            return low, high
        lower, upper = self.choose(state, grid)
        return low.new_tensor(lower).clamp(min=low), high.new_tensor(upper).clamp(max=high)

    def centres(self, state: State) -> Tensor:
        """The middle of every bin, ``[2 · bins]``."""
        index = torch.arange(-self.bins, self.bins, dtype=torch.float32)
        return (index + 0.5) * (float(state["bound"]) / self.bins)

    @abstractmethod
    def choose(self, state: State, grid: Grid) -> tuple[float, float]:
        """The range to keep."""


@final
@dataclass(frozen=True)
class PercentileObserver(HistogramObserver):
    """``share`` of all values lie in the range, as many below it as above."""

    name = "percentile"
    share: float = 0.9999

    def choose(self, state: State, grid: Grid) -> tuple[float, float]:
        """Where the cumulative histogram passes the outer shares."""
        counts = state["counts"].double().cpu()
        cumulative = counts.cumsum(0) / counts.sum()
        outside = torch.tensor((1 - self.share) / 2, dtype=torch.float64)
        first = int(torch.searchsorted(cumulative, outside, right=True))
        last = min(int(torch.searchsorted(cumulative, 1 - outside)), 2 * self.bins - 1)
        half = float(state["bound"]) / self.bins / 2
        centres = self.centres(state)
        return float(centres[first]) - half, float(centres[last]) + half


@dataclass(frozen=True)
class SearchingObserver(HistogramObserver):
    """Base of those that try ranges ``[−b, b]``, ``b`` from the largest magnitude down to a hundredth of it,
    and take the best.
    """

    candidates: int = 100

    def choose(self, state: State, grid: Grid) -> tuple[float, float]:
        """The candidate of the least ``loss``; of equals the widest."""
        low, high = float(state["low"]), float(state["high"])
        largest = max(-low, high)
        edges = [largest * (1 - step / self.candidates) for step in range(self.candidates)]
        candidates = ((max(low, -edge), min(high, edge)) for edge in edges)
        return min(candidates, key=lambda bounds: self.loss(bounds, state, grid))

    @abstractmethod
    def loss(self, bounds: tuple[float, float], state: State, grid: Grid) -> float:
        """How bad it is to clip to ``bounds``."""

    def rounded(self, bounds: tuple[float, float], state: State, grid: Grid) -> Tensor:
        """The bins' centres as the grid for ``bounds`` rounds them."""
        low, high = (torch.tensor(bound) for bound in bounds)
        return grid.fake_quantize(self.centres(state), *grid.parameters(low, high))


@final
@dataclass(frozen=True)
class MSEObserver(SearchingObserver):
    """Least ``Σ counts · (x − x̂)²``."""

    name = "mse"

    def loss(self, bounds: tuple[float, float], state: State, grid: Grid) -> float:
        """The squared error summed over the histogram."""
        error = (self.rounded(bounds, state, grid) - self.centres(state)).double()
        return float((state["counts"].double().cpu() * error.square()).sum())


@final
@dataclass(frozen=True)
class EntropyObserver(SearchingObserver):
    """Least ``Σ p · ln(p / q)``: ``p`` is the histogram with what is clipped in its outermost bins, ``q`` the
    one that is left when all bins which round to one number share their counts evenly.
    """

    name = "entropy"

    def loss(self, bounds: tuple[float, float], state: State, grid: Grid) -> float:
        """The Kullback–Leibler divergence of the rounded distribution."""
        counts, centres = state["counts"].double().cpu(), self.centres(state)
        inside = ((centres >= bounds[0]) & (centres <= bounds[1])).nonzero().flatten()
        if not inside.numel():
            return float("inf")
        first, last = int(inside[0]), int(inside[-1]) + 1
        held = counts[first:last]
        p = held.clone()
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        _, group = torch.unique(self.rounded(bounds, state, grid)[first:last], return_inverse=True)
        filled = (held > 0).double()
        sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64)
        shares = sums.scatter_add(0, group, held) / sums.scatter_add(0, group, filled).clamp(min=1)
        q = shares[group] * filled
        p, q = p / p.sum(), q / q.sum().clamp(min=1e-300)
        tiny = 1e-12  # for bins that hold only what was clipped
        return float((p * (p.clamp(min=tiny) / q.clamp(min=tiny)).log()).sum())


OBSERVERS: dict[str, type[Observer]] = {
    kind.name: kind
    for kind in (
        LastObserver,
        FixedObserver,
        MinMaxObserver,
        MovingAverageObserver,
        PercentileObserver,
        MSEObserver,
        EntropyObserver,
    )
}
"""By the name a config entry or a ``calibration_config`` gives."""
