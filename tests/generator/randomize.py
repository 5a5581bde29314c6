"""Numbers for a model in which nothing is zero, one or freshly initialised."""

from __future__ import annotations

import math
import zlib

import torch
from torch import nn


def randomize(model: nn.Module, seed: int, prefix: str = "") -> nn.Module:
    """Fill every parameter and buffer of `model` in place with values that depend on `seed` and its name.

    Weights are normal, scaled to keep activations near 1; biases and affine parameters are away from zero and
    from one; BatchNorm statistics have `running_var` in [0.5, 1.5]. The model is converted to float64.
    """
    model.double()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{prefix}{name}".encode()))
            unit = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            sign = (torch.rand(tensor.shape, generator=generator, dtype=torch.float64) < 0.5) * 2.0 - 1.0
            if name.endswith("running_var"):
                values = unit + 0.5
            elif tensor.dim() > 1 and tensor[0].numel() > 1:
                normal = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                values = normal * 1.3 / math.sqrt(tensor[0].numel())
            else:
                values = sign * (0.2 + 0.9 * unit)
            tensor.copy_(values)
    return model
