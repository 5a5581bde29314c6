"""Read and write the masks of a compiled model as ``{layer: {"weight": mask, "bias": mask}}``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_SUFFIX = "_mask"


def get_masks(module: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The masks on parameters, by layer and parameter name; each has its parameter's shape, values 0
    and 1.
    """
    masks: dict[str, dict[str, Tensor]] = {}
    for name, owner in module.named_modules():
        for buffer, value in owner.named_buffers(recurse=False):
            parameter = buffer.removesuffix(_SUFFIX)
            if buffer.endswith(_SUFFIX) and parameter in owner._parameters:
                masks.setdefault(name, {})[parameter] = value.detach().clone()
    return masks


def qualified(masks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``{layer: {parameter: mask}}`` → ``{qualified parameter name: mask}``."""
    return {
        f"{layer}.{parameter}" if layer else parameter: mask
        for layer, entries in masks.items()
        for parameter, mask in entries.items()
    }
