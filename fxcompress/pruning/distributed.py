"""Measurements of several processes (``torchrun``, DistributedDataParallel) become one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed


def added_up(
    sums: Mapping[str, Tensor], counts: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``sums`` and ``counts`` over all processes, the same in each; those given where there is but one.

    Every process has to call it, with sums of the same names and shapes.
    """
    alone = not (distributed.is_available() and distributed.is_initialized())
    if alone or distributed.get_world_size() == 1:
        return dict(sums), dict(counts)
    # NCCL adds tensors of its own device only.
    device = "cuda" if distributed.get_backend() == "nccl" else None
    names = sorted(sums)
    total = torch.tensor([counts[name] for name in names], device=device)
    distributed.all_reduce(total)
    added: dict[str, Tensor] = {}
    for name in names:
        value = sums[name].to(device=device, copy=True)
        distributed.all_reduce(value)
        added[name] = value.to(sums[name].device)
    return added, dict(zip(names, total.tolist(), strict=True))
