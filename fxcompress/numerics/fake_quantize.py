"""``FakeQuantize``: the module of a fake-quantize node; training sees the rounding that deployment does.

    x  →  observe its range (in train mode, or while calibrating)  →  x̂ = (clamp(round(x / s) + z) − z) · s

The kernels are ``torch.fake_quantize_*``; scale and zero point come from ``Grid`` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxcompress.numerics.agreement import alone, united
from fxcompress.numerics.grid import BIAS, Grid, bias_scale
from fxcompress.numerics.observers import OBSERVERS, LastObserver, Observer, State, extremes


class TensorQuantizer(nn.Module, ABC):
    """The module of a fake-quantize node. A saved file holds its class, its ``options`` and its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.quantizing = True
        """Whether it rounds."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """What ``restored`` makes another one of: numbers, strings, lists and dicts."""

    @classmethod
    @abstractmethod
    def restored(cls, options: Mapping[str, Any]) -> TensorQuantizer:
        """One with these options."""


TENSOR_QUANTIZERS: dict[str, type[TensorQuantizer]] = {}
"""Those that a file may name."""

Q = TypeVar("Q", bound=type[TensorQuantizer])


def storable(cls: Q) -> Q:
    """Class decorator: let files name this tensor quantizer."""
    TENSOR_QUANTIZERS[cls.__name__] = cls
    return cls


@storable
class FakeQuantize(TensorQuantizer):
    """Rounds a tensor to ``grid`` over the range that ``observer`` has seen.

    Buffers: ``scale`` (float32) and ``zero_point`` (int32), ``[]`` or ``[slices]``, empty until something was
    seen, and what the observer keeps. A range moves in train mode, and stays in eval mode unless it is being
    calibrated.
    """

    def __init__(self, grid: Grid, observer: Observer | None = None) -> None:
        """``observer``: by default the range is that of the tensor at hand, in eval mode too: a weight's."""
        super().__init__()
        grid.check()
        self.grid = grid
        self.observer = LastObserver() if observer is None else observer
        self.observing = True
        """Whether the range may move at all."""
        self.calibrating = observer is None
        """Whether it moves in eval mode too."""
        self.scale: Tensor
        self.zero_point: Tensor
        self.register_buffer("scale", torch.empty(0))
        self.register_buffer("zero_point", torch.empty(0, dtype=torch.int32))
        for name in self.observer.state:
            self.register_buffer(name, torch.empty(0))

    @property
    def is_calibrated(self) -> bool:
        """Whether there are a scale and a zero point."""
        return self.scale.numel() > 0

    @property
    def together(self) -> bool:
        """Whether other processes train on other parts of the batch. A weight is the same in all of them, and
        calibration is each one's own.
        """
        return self.training and not self.calibrating and not alone()

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid, in its own dtype."""
        if self.observing and (self.training or self.calibrating) and x.numel():
            with torch.no_grad():
                self.observe(x.detach())
        if not (self.quantizing and self.is_calibrated):
            return x
        return self.simulate(x)

    def observe(self, x: Tensor) -> None:
        """Take ``x`` into account, and what other processes see of this batch."""
        if self.together and not self.observer.costly:
            x = united(*extremes(x, self.grid.axis), self.grid.axis)
        self._buffers.update(self.observer.update(self._state, x, self.grid))
        if not self.observer.costly:
            self.settle()

    def settle(self) -> None:
        """Compute scale and zero point from what was observed."""
        scale, zero_point = self.grid.parameters(*self.range())
        self._buffers.update(scale=scale, zero_point=zero_point)

    def range(self) -> tuple[Tensor, Tensor]:
        """The range that was observed: float32, ``[]`` or ``[slices]``."""
        return self.observer.range(self._state, self.grid)

    @property
    def _state(self) -> State:
        return {name: self._buffers[name] for name in self.observer.state}  # type: ignore[misc]

    def simulate(self, x: Tensor) -> Tensor:
        """``x`` rounded; gradients pass within the grid's range."""
        return self.grid.fake_quantize(x, self.scale, self.zero_point)

    def adopt(self, **numbers: Tensor) -> None:
        """Take over ``scale``, ``zero_point``, ``low`` and ``high`` of another one."""
        for name, value in numbers.items():
            held = getattr(self, name)
            held.data = value.to(held.device)

    def options(self) -> dict[str, Any]:
        """Grid, observer and flags."""
        flags = {name: getattr(self, name) for name in ("quantizing", "observing", "calibrating")}
        observer = {"name": self.observer.name, **asdict(self.observer)}  # type: ignore[call-overload]
        return {"grid": asdict(self.grid), "observer": observer, **flags}

    @classmethod
    def restored(cls, options: Mapping[str, Any]) -> FakeQuantize:
        """One with these options, nothing seen yet."""
        chosen = dict(options["observer"])
        twin = cls._made(Grid(**options["grid"]), OBSERVERS[chosen.pop("name")](**chosen), options)
        for name in ("quantizing", "observing", "calibrating"):
            setattr(twin, name, bool(options[name]))
        return twin

    @classmethod
    def _made(cls, grid: Grid, observer: Observer, options: Mapping[str, Any]) -> FakeQuantize:
        return cls(grid, observer)

    def deployed(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32) as integer kernels are given them."""
        return self.scale.detach(), self.zero_point

    def integers(self, x: Tensor) -> Tensor:
        """The integers (int32) that ``x`` is rounded to in eval mode: ``simulate`` gives ``(q − z) · s``."""
        return self.grid.quantize(x, *self.deployed())

    def round_bias(self, bias: Tensor, given: FakeQuantize) -> Tensor:
        """``bias`` ``[out]`` of a layer whose weight this rounds and whose input ``given`` does, as integer
        kernels add it: int32 multiples of ``s_x · s_w`` (Jacob et al., CVPR 2018, eq. 11). Gradients pass.
        """
        if not all(q.quantizing and q.is_calibrated for q in (self, given)):
            return bias
        scale = bias_scale(given.deployed()[0], self.deployed()[0], len(bias))
        zero_point = torch.zeros(len(bias), dtype=torch.int32, device=bias.device)
        return BIAS.fake_quantize(bias, scale, zero_point)

    def extra_repr(self) -> str:
        """``8-bit unsigned, moving_average``."""
        grid = self.grid
        sign, form = "signed" if grid.signed else "unsigned", "symmetric" if grid.symmetric else "affine"
        each = "" if grid.axis is None else f", per slice of dimension {grid.axis}"
        each += ", power-of-two scale" if grid.power_of_two else ""
        return f"{grid.bits}-bit {sign} {form}{each}, {self.observer.name}"

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name, held in [*self._buffers.items(), *self._parameters.items()]:
            given = state_dict.get(prefix + name)
            if given is not None and held is not None and given.shape != held.shape:
                held.data = held.new_empty(given.shape)  # shapes follow what was seen
        super()._load_from_state_dict(state_dict, prefix, *args)
