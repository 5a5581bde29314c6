"""External masks described in a line per layer, so that a repro can be pasted."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_masks(model: nn.Module, plan: dict[str, dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """Masks of ones and zeros for the layers of `model` named in `plan`.

    Each layer's plan may hold `rows` and `columns` (indices along axis 0 and 1 of the weight that are zero),
    `scatter` (a fraction of single weights that are zero, placed by `seed`) and `bias` (indices of the bias
    that are zero). Without `bias` there is no mask for the bias.
    """
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for name, what in plan.items():
        layer = model.get_submodule(name)
        weight = layer.get_parameter("weight")
        generator = torch.Generator().manual_seed(what.get("seed", 0))
        mask = (torch.rand(weight.shape, generator=generator) >= what.get("scatter", 0.0)).to(weight.dtype)
        mask[what.get("rows", [])] = 0
        mask[:, what.get("columns", [])] = 0
        masks[name] = {"weight": mask}
        if "bias" in what:
            masks[name]["bias"] = torch.ones_like(layer.get_parameter("bias"))
            masks[name]["bias"][what["bias"]] = 0
    return masks
