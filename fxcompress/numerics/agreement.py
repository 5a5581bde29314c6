"""Ranges that processes which train together (DistributedDataParallel) see as one.

Each process has a share of the batch; the range of the batch is the union of theirs. Without an agreement
every process would round on a grid of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def alone() -> bool:
    """Whether this is the only process."""
    there = distributed.is_available() and distributed.is_initialized()
    return not there or distributed.get_world_size() == 1


def united(low: Tensor, high: Tensor, axis: int | None) -> Tensor:
    """Two numbers that stand for what all processes see, each of which has to call this: the smallest ``low``
    and the largest ``high``, ``[]`` or, of slices along ``axis`` of the result, ``[slices]``.
    """
    ends = torch.stack([-low, high])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX)
    ends = torch.stack([-ends[0], ends[1]])
    return ends if axis is None else ends.view(2, *(1,) * axis, -1).movedim(-1, axis)


def averaged(x: Tensor) -> Tensor:
    """The mean of ``x`` over all processes, each of which has to call this."""
    total = x.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
