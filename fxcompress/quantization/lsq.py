"""Learned step size: scales are parameters, trained with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fxcompress.graph.inputs import copied
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import SMALLEST_SCALE, Grid
from fxcompress.numerics.observers import LastObserver, Observer
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.grad import straight_through
from fxcompress.quantization.wrapper import Wrapper


@storable
class LearnedStep(FakeQuantize):
    """Rounds over a scale that is a parameter: float32, ``[]`` or ``[slices]``.

    It begins at ``2 · mean|x| / √qmax`` of the first tensor of training. Its gradient is
    ``g · Σ ∂L/∂x̂ · (round(x/s) − x/s)``, of clipped ``x`` with ``qmin − z`` or ``qmax − z`` in the bracket,
    ``g = 1 / √(N · qmax)`` for ``N`` numbers to a scale (Esser et al., ICLR 2020, eq. 3 and section 2.2).
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid, LastObserver())
        del self._buffers["scale"]
        self.scale: Tensor = nn.Parameter(torch.empty(0))
        self.begun: Tensor
        self.register_buffer("begun", torch.tensor(False))

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> LearnedStep:
        return cls(grid)

    def observe(self, x: Tensor) -> None:
        """Begin with the first tensor of training; one seen before that gives the shapes."""
        if bool(self.begun):
            return
        super().observe(x)
        self.scale.data = self.begin(x)
        self.begun.fill_(self.training)

    def settle(self) -> None:
        """The zero point is that of the range seen first."""
        _, self.zero_point = self.grid.parameters(*self.range())

    def begin(self, x: Tensor) -> Tensor:
        """The scale to begin with."""
        rows = x.abs() if self.grid.axis is None else x.abs().movedim(self.grid.axis, 0).flatten(1)
        mean = rows.mean() if self.grid.axis is None else rows.mean(1)
        return (2 * mean.float() / math.sqrt(self.grid.qmax)).clamp(min=SMALLEST_SCALE)

    def deployed(self) -> tuple[Tensor, Tensor]:
        """The scale that was learned, as the grid may have it."""
        return self.grid.snapped(self.scale.detach().float()), self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        """``x`` rounded; gradients reach ``x`` within the range, and the scale."""
        grid, scale = self.grid, straight_through(self.scale.float(), self.deployed()[0])
        slices = 1 if grid.axis is None else scale.numel()
        factor = 1.0 / math.sqrt(x.numel() / slices * grid.qmax)
        numbers = (x, scale.reshape(-1), self.zero_point.float().reshape(-1))
        if grid.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(*numbers, grid.qmin, grid.qmax, factor)
        return torch._fake_quantize_learnable_per_channel_affine(
            *numbers, grid.axis, grid.qmin, grid.qmax, factor
        )


@final
class LSQQuantizer(Quantizer):
    """Trains the scales of weights and activations with the weights (Esser et al., Learned Step Size
    Quantization, ICLR 2020).

    The scales are parameters of the module that ``compress()`` returns; an optimizer given to the quantizer
    gets them as a group of its own, without weight decay.
    """

    name = "lsq"

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """A learned scale."""
        return LearnedStep(grid)

    def finish(self, module: CompiledModule) -> None:
        """The example inputs give scales their shapes, so that an optimizer can hold them."""
        args, kwargs = copied(module.example_inputs)
        steps = [q for q in self.fake_quantizers.values() if not q.is_calibrated]
        for step in steps:
            step.calibrating = True
        with eval_mode(module), torch.no_grad():
            module(*args, **kwargs)
        for step in steps:
            step.calibrating = False

    def use_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch the steps of ``optimizer``, and have it train the scales."""
        super().use_optimizer(optimizer)
        scales = [q.scale for q in self.fake_quantizers.values() if isinstance(q, LearnedStep)]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [scale for scale in scales if id(scale) not in held]
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": 0.0})
