"""Quantizers whose methods round one tensor at a time, as in the seeds' API."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxcompress.errors import FxcompressError
from fxcompress.quantization.grad import QuantType, Rounding
from fxcompress.quantization.wrapper import Wrapper

if TYPE_CHECKING:
    from fxcompress.quantization.base import Quantizer


class ByMethod(nn.Module):
    """Rounds a tensor by ``quantizer.quantize_weight``, ``quantize_input`` or ``quantize_output``; its
    gradient is that of ``quantizer.quant_grad``.
    """

    def __init__(self, quantizer: Quantizer, wrapper: Wrapper, kind: QuantType) -> None:
        super().__init__()
        self._quantizer = _Shared(quantizer)
        self._wrapper = wrapper
        self._kind = kind
        self.quantizing = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded."""
        if not self.quantizing:
            return x
        quantizer: Quantizer = self._quantizer.value
        method = getattr(quantizer, f"quantize_{self._kind.value}")
        with torch.no_grad():
            rounded = _told(method, x.detach(), self._wrapper)
        if not isinstance(rounded, Tensor) or rounded.shape != x.shape:
            got = f"shape {tuple(rounded.shape)}" if isinstance(rounded, Tensor) else type(rounded).__name__
            raise FxcompressError(
                f"{type(quantizer).__name__}.{method.__name__} of layer {self._wrapper.name!r}: expected a "
                f"tensor of shape {tuple(x.shape)}, got {got}"
            )
        return Rounding.apply(x, rounded, quantizer.quant_grad, self._kind)  # type: ignore[no-any-return,no-untyped-call]

    def extra_repr(self) -> str:
        """``YourQuantizer.quantize_weight of 'conv1'``."""
        method = f"quantize_{self._kind.value}"
        return f"{type(self._quantizer.value).__name__}.{method} of {self._wrapper.name!r}"


class _Shared:
    """An object that copies of a module share."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self


def _told(method: Any, x: Tensor, wrapper: Wrapper) -> Any:
    """Call ``method`` with the tensor, and what it takes of the facts about the layer."""
    facts = {
        "wrapper": wrapper,
        "config": wrapper.config,
        "op": wrapper.module,
        "op_type": wrapper.type,
        "op_name": wrapper.name,
    }
    taken = inspect.signature(method).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
        facts = {name: value for name, value in facts.items() if name in taken}
    return method(x, **facts)
