"""Comparing modules: outputs by relative error, conditioning, sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

Inputs = tuple[Tensor, ...] | dict[str, Tensor]  # positional, or by keyword


def call(module: nn.Module, inputs: Inputs) -> Any:
    """The output for copies of ``inputs``: an eager model may write to what it is given."""
    if isinstance(inputs, dict):
        return module(**{name: x.clone() for name, x in inputs.items()})
    return module(*(x.clone() for x in inputs))


def map_floats(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """`inputs` with `change` made to those that are floating-point (token ids stay)."""
    if isinstance(inputs, dict):
        return {name: change(x) if x.is_floating_point() else x for name, x in inputs.items()}
    return tuple(change(x) if x.is_floating_point() else x for x in inputs)


def relative_error(got: Any, expected: Any) -> float:
    """Largest deviation over all output tensors, each relative to its own largest expected magnitude.

    Raises AssertionError where structure, shapes or dtypes differ; infinite where finiteness does.
    """
    (left, form), (right, expected_form) = tree_flatten(got), tree_flatten(expected)
    assert form == expected_form, f"output structure {form}, expected {expected_form}"
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape, f"output shape {tuple(a.shape)}, expected {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"output dtype {a.dtype}, expected {b.dtype}"
        error = (a - b).abs().max() / b.abs().max().clamp(min=1e-12)
        worst = max(worst, math.inf if error.isnan() else error.item())
    return worst


def require_close(what: str, got: Any, expected: Any, tolerance: float) -> None:
    error = relative_error(got, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def amplification(model: nn.Module, inputs: Inputs) -> float:
    """How many times larger than a relative change of all numbers the change of the output is."""
    step = 1e-12
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.mul_(1 + step * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
        moved = map_floats(
            lambda x: x * (1 + step * torch.randn(x.shape, generator=generator, dtype=x.dtype)), inputs
        )
        return relative_error(call(twin, moved), call(model, inputs)) / step


@contextmanager
def mode(module: nn.Module, *, train: bool) -> Iterator[nn.Module]:
    """`module` in train or eval mode, every submodule's flag restored afterwards."""
    before = [(child, child.training) for child in module.modules()]
    try:
        yield module.train(train)
    finally:
        for child, training in before:
            child.training = training


class ContiguousNoise(TorchFunctionMode):
    """Random operators read contiguous copies: else the order of their draws follows the memory layout.

    A graph keeps what an operator returns, not the strides it returns it with.
    """

    NAMES = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "rrelu")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]
        if name.rstrip("_") not in self.NAMES or not args or args[0].is_contiguous():
            return func(*args, **kwargs)
        drawn = func(args[0].contiguous(), *args[1:], **kwargs)
        into = args[0] if name.endswith("_") else torch.empty_like(args[0])  # with the same strides
        return into.copy_(drawn)


def run(module: nn.Module, inputs: Inputs) -> Any:
    """The eval-mode output without gradients."""
    with mode(module, train=False), torch.no_grad():
        return call(module, inputs)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_flops(module: nn.Module, inputs: Inputs) -> int:
    """Matrix-product and convolution FLOPs of the eval-mode forward.

    On a copy without gradients (the counter fails on views of parameters) and without fused attention
    kernels (it counts them as nothing).
    """
    twin = copy.deepcopy(module).requires_grad_(False)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run(twin, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())
