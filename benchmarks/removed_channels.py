"""The masked model that a pruned one should equal, read off the pruned model itself.

``label`` numbers the elements of every parameter in its ``.grad``, which a tool that removes channels in
place takes along; ``survivors`` reads which elements are left. ``Masked`` is the original with every other
element zero: weights, biases and norms of the removed channels, and what reads them, so that a removed
channel is zero and nobody sees it. That is what Torch-Pruning itself calls pruning by masking (in its README
and its ``tests/test_soft_pruning.py``).

A channel that is zero still counts in a normalization over the channels. So there is a second, more generous
reading, ``kept_statistics``: layer, group and RMS norms, and means inside a module that scales channels,
count the channels that are left, and attention whose scale is not given divides by the square root of the
width that is left of a head.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}


def label(model: nn.Module) -> None:
    """Number the elements of every float32 parameter: the bits of ``.grad`` are the flat indices."""
    for parameter in model.parameters():
        index = torch.arange(parameter.numel(), dtype=torch.int32).view(parameter.shape)
        parameter.grad = index.view(torch.float32)


def survivors(model: nn.Module) -> dict[str, Tensor]:
    """Flat indices, in the labelled model, of what is left of each parameter; clears the labels."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.grad is None:
            raise ValueError(
                f"{name}: the labels are lost; expected a tool that prunes .grad with the weights"
            )
        found[name] = parameter.grad.view(torch.int32).long()
    for parameter in model.parameters():
        parameter.grad = None
    return found


class Float64(TorchFunctionMode):
    """Models that ask for a narrower float by name get float64, so that rounding hides no difference."""

    def __init__(self) -> None:
        super().__init__()
        self.mean_factor: float | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        kwargs = {name: _wide(value) for name, value in (kwargs or {}).items()}
        result = func(*map(_wide, args), **kwargs)
        if self.mean_factor is not None and func in (Tensor.mean, torch.mean):
            result = result * self.mean_factor
        return result


def _wide(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


class Masked:
    """``original`` with zeros where the elements of ``left`` (name → flat indices) are not; in float64."""

    def __init__(self, original: nn.Module, left: dict[str, Tensor]) -> None:
        self.model = copy.deepcopy(original).double()
        self._kept: dict[int, Tensor] = {}
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            mask = torch.zeros(parameter.numel(), dtype=torch.bool)
            mask[left[name].flatten()] = True
            mask = mask.view(parameter.shape)
            masked = nn.Parameter(parameter.detach() * mask)
            owner, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(owner), attribute, masked)
            if parameter.numel() == max(parameter.shape, default=0) and not mask.all():
                self._kept[id(masked)] = mask.flatten().nonzero().flatten()

    def __call__(self, inputs: tuple[Any, ...], kept_statistics: bool) -> Any:
        """Run on float64 ``inputs``; ``kept_statistics`` as the module docstring says."""
        with Float64() as mode, ExitStack() as stack, torch.no_grad():
            if kept_statistics:
                stack.enter_context(self._norms_of_the_kept())
                stack.enter_context(self._written_out_norms(mode))
            return self.model(*inputs)

    @contextmanager
    def _norms_of_the_kept(self) -> Iterator[None]:
        plain = F.layer_norm, F.rms_norm, F.group_norm, F.scaled_dot_product_attention

        def along(x: Tensor, kept: Tensor, dim: int, norm: Callable[[Tensor], Tensor]) -> Tensor:
            return torch.zeros_like(x).index_copy(dim, kept, norm(x.index_select(dim, kept)))

        def layer_norm(
            x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
        ) -> Tensor:
            kept = self._kept.get(id(weight)) if weight is not None else _nonzero(x)
            if kept is None or len(shape) != 1:
                return plain[0](x, shape, weight, bias, eps)
            own, shift = (None if p is None else p[kept] for p in (weight, bias))
            return along(x, kept, -1, lambda y: plain[0](y, (len(kept),), own, shift, eps))

        def rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
            kept = self._kept.get(id(weight)) if weight is not None else _nonzero(x)
            if kept is None or len(shape) != 1:
                return plain[1](x, shape, weight, eps)
            own = None if weight is None else weight[kept]
            return along(x, kept, -1, lambda y: plain[1](y, (len(kept),), own, eps))

        def group_norm(
            x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
        ) -> Tensor:
            kept = self._kept.get(id(weight))
            if kept is None:
                return plain[2](x, groups, weight, bias, eps)
            return along(x, kept, 1, lambda y: plain[2](y, groups, weight[kept], bias[kept], eps))

        def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if kwargs.get("scale") is None:
                width = int((query != 0).any(-2).sum(-1).max())  # of (batch, heads, tokens, width)
                kwargs["scale"] = 1 / math.sqrt(max(width, 1))
            return plain[3](query, *args, **kwargs)

        replaced: dict[str, Any] = {"layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm}
        with mock.patch.multiple(F, **replaced, scaled_dot_product_attention=attention):
            yield

    @contextmanager
    def _written_out_norms(self, mode: Float64) -> Iterator[None]:
        """In a module of its own that scales by a pruned vector, means count the channels that are left."""
        hooks = []
        for module in self.model.modules():
            kept = self._kept.get(id(getattr(module, "weight", None)))
            if kept is None or type(module).__module__.startswith("torch.") or next(module.children(), None):
                continue
            factor = module.weight.numel() / len(kept)  # type: ignore[operator]
            hooks.append(module.register_forward_pre_hook(_set(mode, factor)))
            hooks.append(module.register_forward_hook(_set(mode, None)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _set(mode: Float64, factor: float | None) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        mode.mean_factor = factor

    return hook


def _nonzero(x: Tensor) -> Tensor:
    """Indices along the last dimension that are not zero everywhere."""
    return x.flatten(0, -2).any(0).nonzero().flatten()
