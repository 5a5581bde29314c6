"""Read and write the masks of a compiled model as ``{layer: {"weight": mask, "bias": mask}}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import FxcompressError

_SUFFIX = "_mask"


def mask_buffers(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Layer, parameter and mask (the buffer itself) of every masked parameter."""
    for name, owner in module.named_modules():
        for buffer, value in owner._buffers.items():
            parameter = buffer.removesuffix(_SUFFIX)
            if value is not None and buffer.endswith(_SUFFIX) and parameter in owner._parameters:
                yield name, parameter, value


def get_masks(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The masks on parameters, by layer and parameter name; each has its parameter's shape, values 0
    and 1.
    """
    masks: dict[str, dict[str, Tensor]] = {}
    for name, parameter, value in mask_buffers(module):
        masks.setdefault(name, {})[parameter] = value.detach().clone()
    return masks


def qualified(masks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``{layer: {parameter: mask}}`` → ``{qualified parameter name: mask}``."""
    return {
        f"{layer}.{parameter}" if layer else parameter: mask
        for layer, entries in masks.items()
        for parameter, mask in entries.items()
    }


def checked(given: Any, own: Mapping[str, nn.Parameter | None], told: str) -> dict[str, Tensor]:
    """The masks that an algorithm gave for the parameters ``own`` of a layer, by parameter name.

    Raises:
        FxcompressError: naming ``told``, if they are not masks of these parameters.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise FxcompressError(
            f"{told}: expected a dict such as {{'weight': mask}}, or None, got {type(given).__name__}"
        )
    masks: dict[str, Tensor] = {}
    for key, mask in given.items():
        name = str(key).removesuffix(_SUFFIX)
        parameter = own.get(name)
        if mask is None:
            continue
        if parameter is None:
            have = ", ".join(repr(n) for n, p in own.items() if p is not None) or "none"
            raise FxcompressError(f"{told}: expected parameters of the layer as keys ({have}), got {key!r}")
        problem = _problem(mask, parameter)
        if problem:
            raise FxcompressError(f"{told}[{key!r}]: expected {problem}")
        masks[name] = mask
    return masks


def _problem(mask: Any, parameter: Tensor) -> str | None:
    """What was expected of ``mask`` and what it is instead, or ``None``."""
    if not isinstance(mask, Tensor):
        return f"a tensor of 0 and 1, got {type(mask).__name__}"
    try:
        fits = torch.broadcast_shapes(mask.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        fits = False
    if not fits:
        return f"a mask of shape {list(parameter.shape)} or one that broadcasts to it, got {list(mask.shape)}"
    if mask.dtype is not torch.bool:
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.numel():
            return f"only 0 and 1, got {wrong.numel()} other values such as {wrong[0].item():.6g}"
    return None
