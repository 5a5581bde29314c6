"""Runtime functions that appear as ``call_function`` nodes in fxcompress graphs.

They exist where an ATen operator alone cannot say what the model means: parameters replaced by an
expression (``call``), randomness and statistics that follow ``train()``/``eval()`` (``dropout``,
``batch_norm``), and normalizations whose statistics run over the kept channels only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def call(module: nn.Module, x: Tensor, **parameters: Tensor) -> Tensor:
    """Call ``module`` on ``x`` with some of its parameters replaced, e.g. by ``weight * mask``.

    The module's hooks, buffers (running statistics) and ``training`` flag behave as in ``module(x)``.
    """
    return torch.func.functional_call(module, parameters, (x,))  # type: ignore[no-any-return]


def dropout(input: Tensor, p: float, owner: nn.Module) -> Tensor:
    """``F.dropout`` whose ``training`` flag is that of the module whose code called it."""
    return F.dropout(input, p, owner.training)


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor | None,
    owner: nn.Module,
    momentum: float | None,
    eps: float,
) -> Tensor:
    """``F.batch_norm`` of a BatchNorm subclass whose own ``forward`` was inlined into the graph.

    In train mode of ``owner`` the batch statistics are used and the running ones updated: by ``momentum``,
    or as a cumulative average over ``batches`` (``num_batches_tracked``) where it is ``None``, as
    ``nn.BatchNorm2d`` does.
    """
    average = 0.0 if momentum is None else momentum
    if owner.training and batches is not None:
        batches.add_(1)
        if momentum is None:
            average = 1.0 / float(batches)
    return F.batch_norm(input, running_mean, running_var, weight, bias, owner.training, average, eps)


def layer_norm(
    input: Tensor,
    mask: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """LayerNorm over the kept channels of the last axis: what the layer computes once they are all it has.

    ``mask`` is 1 for kept and 0 for pruned entries of the last axis; pruned outputs are 0.
    ``y = m · ((x − μ)/√(σ² + eps) · w + b)`` with ``μ = Σ m·x / Σ m`` and ``σ² = Σ m·(x − μ)² / Σ m``
    over ``normalized_shape`` (Ba, Kiros, Hinton 2016, restricted to the kept entries).
    """
    axes = tuple(range(-len(normalized_shape), 0))
    count = mask.expand(normalized_shape).sum()
    mean = (input * mask).sum(axes, keepdim=True) / count
    centred = (input - mean) * mask
    var = (centred * centred).sum(axes, keepdim=True) / count
    y = centred * torch.rsqrt(var + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias * mask
    return y.contiguous()  # as F.layer_norm returns it


def group_norm(
    input: Tensor,
    mask: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """GroupNorm over the kept channels of each group: what the layer computes once they are all it has.

    ``input`` is ``[N, C, *]``; ``mask`` ``[C]`` is 1 for kept and 0 for pruned channels, whose outputs are 0
    (Wu, He 2018, restricted to the kept channels).
    """
    shape = (1, -1, *([1] * (input.dim() - 2)))
    x = input.unflatten(1, (num_groups, -1))
    m = mask.view(shape).unflatten(1, (num_groups, -1))
    axes = tuple(range(2, x.dim()))
    count = m.expand(1, *x.shape[1:]).sum(axes, keepdim=True).clamp_min(1)
    mean = (x * m).sum(axes, keepdim=True) / count
    centred = (x - mean) * m
    var = (centred * centred).sum(axes, keepdim=True) / count
    y: Tensor = (centred * torch.rsqrt(var + eps)).flatten(1, 2)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + (bias * mask).view(shape)
    return y.contiguous()  # as F.group_norm returns it
