"""AdaRound: whether a weight is rounded up or down is learned, layer by layer, so that the output stays.

    Ŵ = s · (clamp(⌊W / s⌋ + h(V) + z, qmin, qmax) − z),   h(V) = clamp(σ(V) · (ζ − γ) + γ, 0, 1)
    min over V:  ‖f(W · x) − f(Ŵ · x̂)‖² / u + λ · Σ 1 − |2 · h(V) − 1|^β

``x̂`` is the rounded input behind layers that are done, ``f`` the ReLU that follows, ζ = 1.1, γ = −0.1
(Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020, eq. 21–25). ``u`` is
what rounding to nearest adds to the error of a channel, so that λ = 1 does not depend on the units of
``W · x``; the paper has ``u`` = 1 and λ = 0.01. ``h`` begins
where ``Ŵ = W``. The error counts alone for the first fifth of the steps; then β falls from 20 to 2, which
drives ``h`` to 0 or 1. Adam, one batch of the data a step, in turn: the same data give the same rounding.
Squared errors are summed over channels, and averaged over batch and positions.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import constant
from fxcompress.graph.module import CompiledModule
from fxcompress.numerics.fake_quantize import FakeQuantize, storable
from fxcompress.passes.links import label
from fxcompress.progress import shown
from fxcompress.quantization.grad import straight_through
from fxcompress.quantization.layerwise import Layer, walk
from fxcompress.quantization.outcome import Outcome
from fxcompress.quantization.placement import clipped, weight_argument, weight_axis

ZETA, GAMMA = 1.1, -0.1
REGULARIZATION = 1.0
WARM_UP = 0.2
BETAS = 20.0, 2.0
TRAVEL = 10.0
"""Learning rate · steps: the paper's 10,000 steps of 1e-3. Fewer steps are larger, so that ``h`` arrives."""


@storable
class AdaptiveRounding(FakeQuantize):
    """Rounds a weight up where ``up`` says so and down elsewhere; to nearest until ``begin``.

    Buffer: ``up``, bool, of the weight's shape, empty before it is decided; the range stays from then on.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.soft: Tensor | None = None
        """``V`` while it is learned."""
        self.up: Tensor
        self.register_buffer("up", torch.empty(0, dtype=torch.bool))

    def observe(self, x: Tensor) -> None:
        """The range is that of the weight until rounding is decided."""
        if self.soft is None and not self.up.numel():
            super().observe(x)

    def begin(self, x: Tensor) -> Tensor:
        """``V`` at which ``x`` stays what it is; weights of 0 (masked ones) stay 0 whatever is learned."""
        steps = x * (1.0 / self.grid.aligned(self.scale, x))
        share = (steps - steps.floor() - GAMMA) / (ZETA - GAMMA)
        self.soft = torch.where(x == 0, -10.0, share.logit()).requires_grad_()
        return self.soft

    def decide(self) -> None:
        """Round for good as ``V`` says."""
        if self.soft is not None:
            self.up, self.soft = (self.share() >= 0.5).detach(), None

    def share(self) -> Tensor:
        """``h(V)``."""
        if self.soft is None:
            return self.up.float()
        return (self.soft.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def simulate(self, x: Tensor) -> Tensor:
        """``Ŵ``; its gradient reaches ``V`` while that is learned, and passes straight through later."""
        if self.soft is None and not self.up.numel():
            return super().simulate(x)
        rounded = self._numbers(x, self.share())
        return rounded if self.soft is not None else straight_through(x, rounded.to(x.dtype))

    def integers(self, x: Tensor) -> Tensor:
        """The integers of ``simulate``."""
        return self._steps(x, self.up).to(torch.int32) if self.up.numel() else super().integers(x)

    def _steps(self, x: Tensor, share: Tensor) -> Tensor:
        scale, zero_point = self.grid.aligned(self.scale, x), self.grid.aligned(self.zero_point, x)
        steps = torch.floor(x * (1.0 / scale)) + share + zero_point
        return steps.clamp(self.grid.qmin, self.grid.qmax)

    def _numbers(self, x: Tensor, share: Tensor) -> Tensor:
        scale, zero_point = self.grid.aligned(self.scale, x), self.grid.aligned(self.zero_point, x)
        return (self._steps(x, share) - zero_point) * scale


def adaround(module: CompiledModule, layers: Collection[fx.Node], data: Iterable[Any], steps: int) -> Outcome:
    """Learn how the weights of ``layers`` are rounded, ``steps`` steps each.

    Args:
        module: calibrated, in eval mode.
        layers: calls whose weight an ``AdaptiveRounding`` rounds.
    """
    done: list[str] = []
    refused: list[tuple[str, str]] = []
    for number, layer in enumerate(walk(module, data, layers), 1):
        found = _rounding(module, layer.node)
        weight = None if found is None else constant(module, found[0].all_input_nodes[0])
        if found is None or weight is None:
            refused.append((label(layer.node), "its weight is computed from the model's inputs"))
        elif learn(Task(layer, *found, weight), steps, f"AdaRound, layer {number} of {len(layers)}"):
            done.append(label(layer.node))
        else:
            refused.append((label(layer.node), "rounding to nearest has the least error on the data"))
    return Outcome(tuple(done), tuple(refused))


@dataclass(frozen=True)
class Task:
    """The rounding of one layer's ``weight``, which the fake-quantize node ``rounded`` does."""

    layer: Layer
    rounded: fx.Node
    quantizer: AdaptiveRounding
    weight: Tensor

    @property
    def channels(self) -> int:
        """How many channels the layer makes."""
        call = call_of(self.layer.node)
        return 1 if call is None else self.weight.shape[weight_axis(call)]

    @functools.cached_property
    def targets(self) -> list[Tensor]:
        """What the float model has behind the layer and its ReLU, batch by batch."""
        return [self.layer.behind(clipped(self.layer.node), y.clone()) for y in self.layer.floats]

    def yields(self, batch: int, weight: Tensor) -> Tensor:
        """What the rounded model has there, with ``weight`` in the layer."""
        y = self.layer.yields(batch, {self.rounded: weight})
        return self.layer.behind(clipped(self.layer.node), y)

    def error(self, batch: int) -> Tensor:
        """The mean squared error as the weight is rounded now."""
        y = self.yields(batch, self.quantizer.simulate(self.weight))
        return (y - self.targets[batch]).square().mean()

    def total(self) -> float:
        """The error over all batches."""
        with torch.no_grad():
            return sum(float(self.error(batch)) for batch in range(len(self.targets)))

    def unit(self) -> float:
        """What rounding to nearest adds to the squared error, of the first batch."""
        with torch.no_grad():
            rounded, whole = (self.yields(0, w) for w in (self.quantizer.simulate(self.weight), self.weight))
            return float((rounded - whole).square().mean())


def learn(task: Task, steps: int, told: str) -> bool:
    """Learn the rounding of one layer; keep rounding to nearest, and say so, where that has less error.

    Args:
        told: what the progress bar is labelled.
    """
    quantizer, nearest, unit = task.quantizer, task.total(), task.unit()
    if unit == 0:
        return False
    rounding = quantizer.begin(task.weight)
    optimizer = torch.optim.Adam([rounding], TRAVEL / max(steps, 100))
    for step in shown(range(steps), told):
        with torch.enable_grad():
            loss = task.error(step % len(task.targets)) * (task.channels / unit)
            beta = annealed(step / steps)
            if beta is not None:
                loss = loss + REGULARIZATION * (1 - (2 * quantizer.share() - 1).abs().pow(beta)).sum()
            (rounding.grad,) = torch.autograd.grad(loss, rounding)
        optimizer.step()
    quantizer.decide()
    if task.total() < nearest:
        return True
    quantizer.up = quantizer.up.new_empty(0)
    return False


def annealed(progress: float) -> float | None:
    """β at a share of the steps; ``None`` while only the error counts."""
    if progress < WARM_UP:
        return None
    first, last = BETAS
    return last + (first - last) * (1 - (progress - WARM_UP) / (1 - WARM_UP))


def _rounding(module: CompiledModule, node: fx.Node) -> tuple[fx.Node, AdaptiveRounding] | None:
    """The fake-quantize node of a layer's weight, and its module."""
    call = call_of(node)
    argument = None if call is None else weight_argument(call)
    rounded = None if call is None or argument is None else call.get(argument)
    if not isinstance(rounded, fx.Node) or len(rounded.all_input_nodes) != 2:
        return None
    found = module.get_submodule(str(rounded.all_input_nodes[1].target))
    return (rounded, found) if isinstance(found, AdaptiveRounding) else None
