"""``Values``: which tensors, and which slices of tensors, are constant whatever the model's input is.

A tensor computed from parameters alone is *known*. Of any other tensor a slice along one dimension may be
constant: a masked filter's output is its bias everywhere. Constants are float64 vectors over the slices of a
dimension, with NaN where the slice is not constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.calls import Call, Ref, Reference
from fxcompress.graph.module import get_tensor
from fxcompress.graph.shapes import element_info
from fxcompress.rules.axes import AxisMap

T = TypeVar("T")


class Values:
    """Constants found so far; rules ask with ``slices`` and answer with ``set``."""

    def __init__(self, root: nn.Module, axis_map: AxisMap, canonical: Callable[[Ref], Ref]) -> None:
        self.root = root
        self.map = axis_map
        self.canonical = canonical
        self._known: dict[fx.Node, Tensor] = {}
        self._slices: dict[tuple[Ref, int], Tensor | None] = {}
        self._several: dict[tuple[fx.Node, int, int], Tensor] = {}
        self._once: dict[fx.Node, Any] = {}

    # -- asking --------------------------------------------------------------------------------------------
    def known(self, ref: Any) -> Tensor | None:
        """The value of a parameter, or of a node computed from parameters alone."""
        if isinstance(ref, fx.Node):
            return self._known.get(ref)
        return get_tensor(self.root, ref).detach() if isinstance(ref, Reference) else None

    def slices(self, ref: Ref, dim: int) -> Tensor | None:
        """The constants along ``dim`` (float64, NaN where not constant),
        or ``None`` if no slice is constant.
        """
        key = (ref, dim)
        if key not in self._slices:
            value = self.known(ref)
            self._slices[key] = None if value is None else uniform_slices(value, dim)
        return self._slices[key]

    def whole(self, ref: Ref) -> float | None:
        """The value of a tensor that is the same number everywhere."""
        value = self.known(ref)
        if value is not None:
            if value.numel() == 0 or value.dtype.is_complex:
                return None
            low, high = value.min().item(), value.max().item()
            return float(low) if low == high else None
        for dim, axis in enumerate(self.map.of.get(ref, ())):
            found = self._slices.get((ref, dim))
            if found is not None and axis.size and bool((found == found[0]).all()):
                return float(found[0])
        return None

    def dtype(self, ref: Ref) -> torch.dtype:
        """The dtype of a tensor."""
        if isinstance(ref, fx.Node):
            found = element_info(ref)
            return torch.float32 if found is None else found.dtype
        return get_tensor(self.root, ref).dtype

    def zero(self, ref: Ref, dim: int) -> Tensor | None:
        """Boolean vector of the slices that are exactly zero, or ``None`` if none is."""
        found = self.slices(ref, dim)
        zeros = None if found is None else found == 0
        return zeros if zeros is not None and bool(zeros.any()) else None

    def baked(self, ref: Any) -> Reference | None:
        """The parameter behind ``ref``: itself, or the one a mask-multiply node multiplies."""
        if isinstance(ref, fx.Node):
            name = ref.meta.get("masked_parameter")
            return None if name is None else Reference(name)
        return ref if isinstance(ref, Reference) else None

    def unshared(self, *parameters: Any) -> bool:
        """Whether every given parameter is read by one call only, so that this call may change it."""
        names = [self.canonical(p) for p in parameters if isinstance(p, Reference)]
        return all(self.map.uses.get(str(name), 0) <= 1 for name in names)

    def once(self, node: fx.Node, make: Callable[[], T]) -> T:
        """``make()``, computed once per node (when the constants of its operands are known)."""
        if node not in self._once:
            self._once[node] = make()
        return self._once[node]  # type: ignore[no-any-return]

    def asked(self) -> list[tuple[Ref, int]]:
        """The known tensors, with a dimension, whose slices a rule has asked for."""
        return [(ref, dim) for ref, dim in self._slices if self.known(ref) is not None]

    # -- answering -----------------------------------------------------------------------------------------
    def set(self, node: fx.Node, dim: int, constants: Tensor | None, index: int | None = None) -> None:
        """Add constants of ``node`` (of its ``index``-th result) along ``dim``."""
        if constants is None:
            return
        constants = constants.to(torch.float64)
        constants = torch.where(torch.isfinite(constants), constants, torch.nan)
        if bool(constants.isnan().all()):
            return
        if index is None:
            self._slices[node, dim] = _merged(self._slices.get((node, dim)), constants)
        else:
            key = (node, index, dim)
            self._several[key] = _merged(self._several.get(key), constants)

    def set_known(self, node: fx.Node, value: Tensor) -> None:
        """Record the value of a node computed from parameters alone."""
        self._known[node] = value

    def take_item(self, node: fx.Node, source: fx.Node, index: int) -> None:
        """``node`` is the ``index``-th result of ``source``."""
        for dim in range(len(self.map.of.get(node, ()))):
            self.set(node, dim, self._several.get((source, index, dim)))

    @staticmethod
    def evaluate(call: Call, operands: dict[Ref, Tensor]) -> Any:
        """Run the operator on ``operands`` in place of its tensors."""

        def fill(value: Any) -> Any:
            if isinstance(value, (fx.Node, Reference)):
                return operands[value]
            if isinstance(value, (list, tuple)):
                return type(value)(fill(v) for v in value)
            return value

        with torch.no_grad():
            return call.target(**{k: fill(v) for k, v in call.args.items()})


def zeros(given: Tensor | None) -> Tensor | None:
    """Of constants those that are zero (float64, NaN elsewhere)."""
    return None if given is None else torch.where(given == 0, 0.0, torch.nan).double()


def _merged(known: Tensor | None, more: Tensor) -> Tensor:
    return more if known is None else torch.where(known.isnan(), more, known)


def uniform_slices(value: Tensor, dim: int) -> Tensor | None:
    """The number that each slice of ``value`` along ``dim`` consists of (float64, NaN where there are
    several), or ``None`` if no slice does.
    """
    if value.dtype.is_complex or value.numel() == 0 or value.dim() == 0:
        return None
    flat = value.movedim(dim, 0).reshape(value.shape[dim], -1)
    first = flat[:, 0].to(torch.float64)
    uniform = (flat == flat[:, :1]).all(1)
    return torch.where(uniform, first, torch.nan) if bool(uniform.any()) else None
