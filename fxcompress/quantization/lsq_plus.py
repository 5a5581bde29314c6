"""LSQ+: the offsets of asymmetric activations are learned as well as the step sizes.

    x̂ = clamp(round((x − β) / s), qmin, qmax) · s + β

The offset ``β`` is a parameter like the step ``s``. Integers have a whole zero point, so ``β`` is rounded to
``−z · s`` in training already, straight through; the gradients are those of ``lsq.LearnedRounding`` (Bhalgat
et al., LSQ+: Improving low-bit quantization through learnable offsets and better initialization, CVPR
Workshops 2020).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import Grid
from fxcompress.quantization.lsq import LearnedQuantizer, LearnedStep
from fxcompress.quantization.wrapper import Wrapper


@storable
class LearnedOffset(LearnedStep):
    """Rounds over a scale and an offset that are parameters: float32, ``[]`` or ``[slices]``.

    A tensor whose first batch has no number below zero keeps its zero at the lower end of the grid, as the
    kernel that does a ReLU by that end needs it: there the offset is not learned.
    """

    def __init__(self, grid: Grid, start: str = "least_error") -> None:
        super().__init__(grid, start)
        self.beta: Tensor = nn.Parameter(torch.empty(0))
        self.shifts: Tensor
        self.register_buffer("shifts", torch.tensor(False))
        """Whether the offset is learned."""

    def begin(self, x: Tensor) -> None:
        """Set step and offset to begin with."""
        super().begin(x)
        self.beta.data = -self.zero_point * self.scale.data
        self.shifts.fill_(bool((self.get_buffer("low") < 0).any()))

    def adopt(self, **numbers: Tensor) -> None:
        """As the base's."""
        super().adopt(**numbers)
        self.beta.data = -self.zero_point * self.scale.data
        self.shifts.fill_(bool((self.zero_point != self.grid.qmin).any()))

    def deployed(self) -> tuple[Tensor, Tensor]:
        """The step as the grid may have it, and the zero point ``z`` for which ``−z · s`` is nearest β."""
        scale, fixed = super().deployed()
        nearest = torch.round(-self.beta.detach() / scale).clamp(self.grid.qmin, self.grid.qmax)
        return scale, torch.where(self.shifts, nearest.to(torch.int32), fixed)

    def offset(self, step: Tensor) -> Tensor:
        """The parameter, where it is learned."""
        return torch.where(self.shifts, self.beta, super().offset(step))


@final
class LSQPlusQuantizer(LearnedQuantizer):
    """Trains the steps of weights and activations, and the offsets of activations, with the weights.

    Weights begin at ``max(|μ − 3σ|, |μ + 3σ|) / 2^(bits − 1)``, activations where the squared error of the
    first batch is least (Bhalgat et al., LSQ+, CVPR Workshops 2020). Symmetric schemes have no offset.
    """

    name = "lsq+"

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """A learned step, with a learned offset where the scheme is affine."""
        start = "deviation" if quant_type == "weight" else "least_error"
        return LearnedStep(grid, start) if grid.symmetric else LearnedOffset(grid, start)
