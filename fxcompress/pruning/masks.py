"""Read and write the masks of a compiled model as ``{layer: {"weight": mask, "bias": mask}}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

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
