"""Learned step size: scales are parameters, trained with the weights."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fxcompress.graph.inputs import copied
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.numerics.agreement import averaged
from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import LastObserver, MSEObserver, Observer, extremes
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.grad import straight_through
from fxcompress.quantization.wrapper import Wrapper


def magnitude(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """``2 · mean|x| / √qmax``, and the zero point of the range of ``x`` (Esser et al., ICLR 2020)."""
    scale = 2 * _rows(x.abs(), grid).float().mean(-1) / math.sqrt(grid.qmax)
    return scale, _range(x, grid)[1]


def deviation(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """``max(|μ − 3σ|, |μ + 3σ|) / 2^(bits − 1)`` for weights (Bhalgat et al. 2020, section 3.2)."""
    rows = _rows(x, grid).float()
    mean, spread = rows.mean(-1), 3 * rows.std(-1, correction=0)
    scale = torch.maximum((mean - spread).abs(), (mean + spread).abs()) / 2 ** (grid.bits - 1)
    return scale, _range(x, grid)[1]


def least_error(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point with the least ``‖x̂ − x‖²`` for activations (Bhalgat et al. 2020, eq. 8)."""
    observer = MSEObserver()
    found = grid.parameters(*observer.range(observer.update({"low": x.new_empty(0)}, x, grid), grid))
    like = _range(x, grid)
    return found[0].expand_as(like[0]).clone(), found[1].expand_as(like[1]).clone()


def _rows(x: Tensor, grid: Grid) -> Tensor:
    """The numbers that share a scale, in the last dimension."""
    return x.flatten() if grid.axis is None else x.movedim(grid.axis, 0).flatten(1)


def _range(x: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    return grid.parameters(*extremes(x, grid.axis))


STARTS: dict[str, Callable[[Tensor, Grid], tuple[Tensor, Tensor]]] = {
    f.__name__: f for f in (magnitude, deviation, least_error)
}
"""By name: a tensor, the grid → the scale and zero point to begin with, ``[]`` or ``[slices]``."""


class LearnedRounding(torch.autograd.Function):
    """``x̂ = v · s + β`` with ``v = clamp(round((x − β) / s), qmin, qmax)``, and what it owes to ``x, s, β``.

    With ``u = (x − β) / s``, which is within the grid from ``qmin`` to ``qmax``:

        ∂x̂/∂x = 1 within, 0 outside
        ∂x̂/∂s = round(u) − u within, qmin below, qmax above
        ∂x̂/∂β = 0 within, 1 outside

    (Esser et al., ICLR 2020, eq. 3 and 5, where ``β = 0``; Bhalgat et al. 2020, eq. 4 and 5.) Torch's own
    learnable kernels count all that is rounded to ``qmin`` or ``qmax`` as within.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, offset: Tensor, zero_point: Tensor, grid: Grid, factor: float
    ) -> Tensor:
        """``x̂`` of float32 ``x``.

        Args:
            step: float32, ``[]`` or ``[slices]``, like ``offset`` and ``zero_point``.
            offset: ``β``, for its gradient.
            zero_point: int32, the ``z`` of ``β = −z · s``.
            factor: what the gradients of step and offset are multiplied by.
        """
        ctx.save_for_backward(x, step, zero_point)
        ctx.grid, ctx.factor = grid, factor
        return grid.fake_quantize(x, step, zero_point)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        """Of step and offset the sum over the numbers that share them."""
        (x, step, zero_point), (grad,), grid = ctx.saved_tensors, grad_outputs, ctx.grid
        u = x * (1.0 / grid.aligned(step, x)) + grid.aligned(zero_point, x)
        inside = (u >= grid.qmin) & (u <= grid.qmax)
        bracket = torch.where(inside, torch.round(u) - u, u.clamp(grid.qmin, grid.qmax))
        rows = [_rows(grad * owed, grid).sum(-1) * ctx.factor for owed in (bracket, ~inside)]
        return grad * inside, *rows, None, None, None


@storable
class LearnedStep(FakeQuantize):
    """Rounds over a scale that is a parameter: float32, ``[]`` or ``[slices]``.

    It begins as ``start`` (of ``STARTS``) says of the first tensor of training. Its gradient is multiplied by
    ``g = 1 / √(N · qmax)`` for ``N`` numbers to a scale (Esser et al., ICLR 2020, section 2.2).
    """

    def __init__(self, grid: Grid, start: str = "magnitude") -> None:
        super().__init__(grid, LastObserver())
        self.start = start
        del self._buffers["scale"]
        self.scale: Tensor = nn.Parameter(torch.empty(0))
        self.begun: Tensor
        self.register_buffer("begun", torch.tensor(False))
        self._known_begun = False  # torch.compile can look at this, and not at a tensor

    def options(self) -> dict[str, Any]:
        """The base's, and how it begins."""
        return {**super().options(), "start": self.start}

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> LearnedStep:
        return cls(grid, options["start"])

    def forward(self, x: Tensor) -> Tensor:
        """As the base's."""
        y = super().forward(x)
        if y is x and self.together:  # DistributedDataParallel waits for a gradient of every parameter
            y = y + 0.0 * torch.stack([p.sum() for p in self.parameters()]).sum()
        return y

    def observe(self, x: Tensor) -> None:
        """Begin with the first tensor of training; one seen before that gives the shapes."""
        if self._known_begun or bool(self.begun):
            self._known_begun = True
            return
        super().observe(x)
        self.begin(x)
        self.begun.fill_(self.training)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._known_begun = False
        super()._load_from_state_dict(*args)

    def settle(self) -> None:
        """Of the range itself nothing follows."""

    def begin(self, x: Tensor) -> None:
        """Set the numbers to begin with."""
        scale, zero_point = STARTS[self.start](x, self.grid)
        if self.together:
            scale, zero_point = averaged(scale), averaged(zero_point.float()).round().to(torch.int32)
        self.scale.data, self.zero_point = self.grid.snapped(scale), zero_point

    def adopt(self, **numbers: Tensor) -> None:
        """As the base's; training goes on from there."""
        super().adopt(**numbers)
        self.begun.fill_(True)

    def deployed(self) -> tuple[Tensor, Tensor]:
        """The magnitude of what was learned, as the grid may have it: a large step of an optimizer takes
        the parameter through zero.
        """
        return self.grid.snapped(self.scale.detach().float().abs()), self.zero_point

    @property
    def step(self) -> Tensor:
        """The scale as the grid may have it, with the gradient of the parameter."""
        return straight_through(self.scale.float().abs(), self.deployed()[0])

    def factor(self, x: Tensor) -> float:
        """``g``."""
        return 1.0 / math.sqrt(x.numel() / self.scale.numel() * self.grid.qmax)

    def offset(self, step: Tensor) -> Tensor:
        """``β`` at this step: the zero point is fixed, so it moves with the step."""
        return -self.zero_point * step

    def simulate(self, x: Tensor) -> Tensor:
        """``x`` rounded; gradients reach ``x`` and what is learned."""
        step, (_, zero_point) = self.step, self.deployed()
        numbers = (x.float(), step, self.offset(step), zero_point, self.grid, self.factor(x))
        rounded: Tensor = LearnedRounding.apply(*numbers)  # type: ignore[no-untyped-call]
        return rounded.to(x.dtype)


class LearnedQuantizer(Quantizer, ABC):
    """Trains what it rounds with: parameters of the module that ``compress()`` returns. An optimizer given
    to the quantizer gets them as a group of its own, without weight decay.
    """

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
        learned = [p for q in self.fake_quantizers.values() for p in q.parameters()]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in learned if id(p) not in held]
        if missing:
            optimizer.add_param_group({"params": missing, "weight_decay": 0.0})


@final
class LSQQuantizer(LearnedQuantizer):
    """Trains the scales of weights and activations with the weights (Esser et al., Learned Step Size
    Quantization, ICLR 2020).
    """

    name = "lsq"

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """A learned scale."""
        return LearnedStep(grid)
