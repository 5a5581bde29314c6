"""Run a compiled model in float64, where differences between two forms of one function cannot hide."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target
from torch.utils import _pytree as pytree

from fxcompress.graph.module import CompiledModule

M = TypeVar("M", bound=nn.Module)
_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


class Float64(fx.Interpreter):
    """Runs a compiled model in float64, also where its graph asks for a narrower float by name.

    Weights are widened where they are read and forgotten again, so that at no time a second model is held.
    The module is left as it is; called modules are copies of theirs. Inputs may be of any precision.
    """

    def __init__(self, module: CompiledModule) -> None:
        super().__init__(module)
        calls = Counter(
            str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")
        )
        self._again = {target for target, count in calls.items() if count > 1}
        self._copies: dict[nn.Module, nn.Module] = {}

    def placeholder(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """The input, widened."""
        return to_float64(super().placeholder(target, args, kwargs))

    def get_attr(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """The tensor as it is, or a wide copy of the module."""
        value = super().get_attr(target, args, kwargs)
        return self._wide(str(target), value) if isinstance(value, nn.Module) else value

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """The function of widened operands."""
        return super().call_function(target, to_float64(args), to_float64(kwargs))

    def call_module(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """A wide copy of the module, of widened operands."""
        called = self._wide(str(target), self.fetch_attr(str(target)))
        return called(*to_float64(args), **to_float64(kwargs))

    def output(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """What the graph returns, widened."""
        return to_float64(super().output(target, args, kwargs))

    def _wide(self, target: str, module: nn.Module) -> nn.Module:
        """One copy for all calls, should the module change by them; else one that goes after its call."""
        known = self._copies.get(module)
        if known is not None:
            return known
        twin = _wide_copy(module)
        if target in self._again:
            self._copies[module] = twin
        return twin


def float64_copy(module: CompiledModule) -> CompiledModule:
    """A deep copy that computes in float64, also where the graph asks for a narrower float by name."""
    twin = _wide_copy(module)
    for node in twin.graph.nodes:
        node.args = to_float64(node.args)
        node.kwargs = to_float64(node.kwargs)
    twin.recompile()
    return twin


def _wide_copy(module: M) -> M:
    """A deep copy whose tensors are wide; no narrow copies are made on the way."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in _WIDE:
            wide = tensor.detach().to(_WIDE[tensor.dtype])
            is_parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(wide, tensor.requires_grad) if is_parameter else wide
    return copy.deepcopy(module, memo)


def to_float64(values: Any) -> Any:
    """Floating-point tensors and dtypes among the leaves of a pytree as float64, complex ones as complex128,
    everything else as it is.
    """
    return pytree.tree_map(_wide_value, values)


def _wide_value(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDE.get(value, value)
    return value.to(_WIDE.get(value.dtype, value.dtype)) if isinstance(value, Tensor) else value


def relative_difference(got: Any, expected: Any) -> float:
    """The largest absolute difference of two pytrees of tensors over the expected one's largest magnitude.

    Tensor by tensor, the worst is returned; ``inf`` where shapes, structure or finiteness differ.
    """
    mine, mine_spec = pytree.tree_flatten(got)
    theirs, their_spec = pytree.tree_flatten(expected)
    if mine_spec != their_spec:
        return float("inf")
    return max((_difference(a, b) for a, b in zip(mine, theirs, strict=True)), default=0.0)


def _difference(got: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(got, Tensor):
        return 0.0 if got is expected or got == expected else float("inf")
    if got.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if expected.is_complex() and got.is_complex():
        return _difference(torch.view_as_real(got), torch.view_as_real(expected))
    if not expected.is_floating_point():
        return float(not torch.equal(got, expected))
    a, b = got.double(), expected.double()
    same = torch.isfinite(b) | (a == b) | (a.isnan() & b.isnan())
    if not bool(same.all()) or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    finite = b.isfinite()
    if not bool(finite.any()):
        return 0.0
    gap, scale = (a - b)[finite].abs().max(), b[finite].abs().max()
    return float(gap / scale) if float(scale) > 0 else float(gap)
