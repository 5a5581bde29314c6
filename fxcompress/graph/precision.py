"""Run a compiled model in float64, where differences between two forms of one function cannot hide."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.graph.module import CompiledModule

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


def float64_copy(module: CompiledModule) -> CompiledModule:
    """A deep copy that computes in float64, also where the graph asks for a narrower float by name."""
    twin = copy.deepcopy(module)
    twin._apply(lambda tensor: tensor.to(_WIDE.get(tensor.dtype, tensor.dtype)))  # type: ignore[no-untyped-call]
    for node in twin.graph.nodes:
        node.args = _widened(node.args)
        node.kwargs = _widened(node.kwargs)
    twin.recompile()
    return twin


def _widened(arguments: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_widened(a) for a in arguments)
    if isinstance(arguments, dict):
        return {k: _widened(v) for k, v in arguments.items()}
    return _WIDE.get(arguments, arguments) if isinstance(arguments, torch.dtype) else arguments


def to_float64(inputs: Any) -> Any:
    """Floating-point tensors of a pytree as float64, complex ones as complex128, everything else as it is."""
    return pytree.tree_map(
        lambda x: x.to(_WIDE.get(x.dtype, x.dtype)) if isinstance(x, Tensor) else x, inputs
    )


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
