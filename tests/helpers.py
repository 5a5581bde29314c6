"""What the unit tests share: numbers that are nowhere plain, masks, and law 1 on one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule
from tests.comparing import relative_error, run
from tests.generator.masks import make_masks
from tests.generator.randomize import randomize
from tests.laws import EXACT, apply_masks

torch.set_num_threads(1)  # the tensors are tiny

Masks = dict[str, dict[str, Tensor]]
Body = Callable[[Any, Tensor], Any]

__all__ = ["EXACT", "Function", "Masks", "apply_masks", "image", "make_masks", "relative_error", "run"]


class Function(nn.Module):
    """``body(self, x)`` with the given layers as attributes: a model in a line."""

    def __init__(self, body: Body, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._body = (body,)  # in a tuple: a function is no submodule and no method

    def forward(self, x: Tensor) -> Any:
        return self._body[0](self, x)


def image(*shape: int, seed: int = 0) -> Tensor:
    """A random float64 tensor."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ready(model: nn.Module, seed: int = 1) -> nn.Module:
    """``model`` with randomized statistics, biases and affine parameters, in float64 and eval mode."""
    return randomize(model, seed).eval()


def check_exact(small: nn.Module, reference: nn.Module, x: Tensor, tolerance: float = EXACT) -> None:
    """Law 1 in float64 on ``x`` and at another batch size, relative to the largest output magnitude."""
    other = x.flip(0) * 0.7 if x.is_floating_point() else x.flip(0)
    for inputs in (x, torch.cat([x, other, x[:1]])):
        error = relative_error(run(small, (inputs,)), run(reference, (inputs,)))
        assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"


def shrunk(
    model: nn.Module, x: Tensor, plan: dict[str, dict[str, Any]], *, other: Tensor | None = None
) -> CompiledModule:
    """Speed up a randomized ``model`` under the masks of ``plan`` (see ``make_masks``) and check law 1.

    ``other``: an input of another resolution on which it must hold too.
    """
    model = ready(model)
    masks = make_masks(model, plan)
    small = fxcompress.speedup(model, x, masks=masks)
    masked = apply_masks(model, masks)
    check_exact(small, masked, x)
    if other is not None:
        check_exact(small, masked, other)
    assert size(small) <= size(model)
    return small


def compiled(model: nn.Module, x: Any, sparsity: float = 0.5, **entry: Any) -> CompiledModule:
    """``compile`` of a randomized ``model`` with one structured L1 entry."""
    return fxcompress.compile(ready(model), [{"sparsity": sparsity, **entry}], x)


def size(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


def operators(module: CompiledModule) -> list[str]:
    """The operator of every call in the graph, in order."""
    return [call.op for call in map(call_of, module.graph.nodes) if call is not None]


def targets(module: CompiledModule) -> list[str]:
    """Target of every call in the graph, in order: module names, and functions by their last name."""
    return [target_name(n) for n in module.graph.nodes if n.op in ("call_module", "call_function")]


def target_name(node: fx.Node) -> str:
    """The module name or attribute of a node, or the last name of its function."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name.partition("::")[2])
    return node.target if isinstance(node.target, str) else node.target.__name__


def weight_shape(module: nn.Module, layer: str) -> tuple[int, ...]:
    """The shape of a layer's weight."""
    return tuple(module.get_submodule(layer).get_parameter("weight").shape)


def row_mask(like: Tensor, gone: Iterable[int]) -> Tensor:
    """Ones of the shape of ``like`` with zeros in the rows ``gone``."""
    mask = torch.ones_like(like)
    mask[list(gone)] = 0
    return mask


def copied(model: nn.Module) -> nn.Module:
    """A deep copy."""
    return copy.deepcopy(model)
