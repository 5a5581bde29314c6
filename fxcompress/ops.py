"""Runtime functions that appear as ``call_function`` nodes in fxcompress graphs.

They exist where an ATen operator alone cannot say what the model means: parameters replaced by an
expression (``call``), values that are looked at (``observe``) or rounded (``fake_quantize``,
``round_bias``), randomness and statistics that follow ``train()``/``eval()`` (``dropout``, ``batch_norm``,
``lstm``, ``gru``, ``rnn_tanh``, ``rnn_relu``), channels that one layer alone does without
(``gather_channels``, ``scatter_channels``), and normalizations and statistics that run over the kept
channels only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def call(module: nn.Module, x: Tensor, **parameters: Tensor) -> Tensor:
    """Call ``module`` on ``x`` with some of its parameters replaced, e.g. by ``weight * mask``.

    The module's hooks, buffers (running statistics) and ``training`` flag behave as in ``module(x)``.
    """
    held = module._parameters
    if torch.compiler.is_compiling() or not parameters.keys() <= held.keys():
        return torch.func.functional_call(module, parameters, (x,))  # type: ignore[no-any-return]
    own = dict(held)  # what functional_call does, without its search for tied names
    held.update(parameters)  # type: ignore[arg-type]
    try:
        return module(x)  # type: ignore[no-any-return]
    finally:
        held.update(own)


def observe(x: Tensor, observer: nn.Module) -> Tensor:
    """Show ``x`` to ``observer``, detached, and pass it on."""
    observer(x.detach())
    return x


def fake_quantize(input: Tensor, owner: nn.Module) -> Tensor:
    """``input`` as the quantizer ``owner`` rounds it."""
    return owner(input)  # type: ignore[no-any-return]


def round_bias(bias: Tensor, owner: nn.Module, input_owner: nn.Module) -> Tensor:
    """A layer's ``bias`` as integer kernels add it; ``owner`` rounds the weight, ``input_owner`` x."""
    return owner.round_bias(bias, input_owner)  # type: ignore[operator, no-any-return]


def dropout(input: Tensor, p: float, owner: nn.Module) -> Tensor:
    """``F.dropout`` whose ``training`` flag is that of the module whose code called it."""
    return F.dropout(input, p, owner.training)


def unless_training(now: Tensor, copied: Tensor, owner: nn.Module) -> Tensor:
    """What a tensor holds that a dropout of ``owner`` shares memory with in eval mode: ``now``; in train mode
    dropout made a copy, and it is what it was, ``copied``.
    """
    return copied if owner.training else now


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


def _follows(kind: Any) -> Callable[..., tuple[Tensor, ...]]:
    """A recurrent ATen operator whose ``train`` flag is that of the module whose code called it."""

    def run(
        input: Tensor,
        hx: Any,
        params: list[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        bidirectional: bool,
        batch_first: bool,
        owner: nn.Module,
    ) -> tuple[Tensor, ...]:
        flags = (has_biases, num_layers, dropout, owner.training, bidirectional, batch_first)
        return kind(input, hx, params, *flags)  # type: ignore[no-any-return]

    run.__name__ = run.__qualname__ = kind.__name__.partition(".")[0]
    return run


_aten = torch.ops.aten
lstm, gru = _follows(_aten.lstm.input), _follows(_aten.gru.input)
rnn_tanh, rnn_relu = _follows(_aten.rnn_tanh.input), _follows(_aten.rnn_relu.input)


def gather_channels(input: Tensor, index: Tensor, dim: int) -> Tensor:
    """``y[k] = x[index[k]]`` along ``dim``: the channels one layer reads of a tensor that others read too.

    ``index`` is ``[K]``, ascending. The last of several dimensions is gathered as that of a matrix, for which
    ``index_select`` has a faster kernel.
    """
    if input.dim() > 2 and dim == input.dim() - 1:
        rows = input.flatten(0, -2).index_select(1, index)
        return rows.view(*input.shape[:-1], index.shape[0])
    return input.index_select(dim, index)


def scatter_channels(input: Tensor, index: Tensor, rest: Tensor, dim: int) -> Tensor:
    """``y[index[k]] = x[k]`` along ``dim`` and ``y[c] = rest[c]`` elsewhere: the channels that a layer makes,
    among those it would make constant.

    ``index`` is ``[K]``, ascending; ``rest`` is ``[C]`` for the ``C ≥ K`` channels of the result.
    """
    constants = rest.to(input.dtype).view([-1 if d == dim else 1 for d in range(input.dim())])
    if torch.compiler.is_exporting() and dim < input.dim() - 1:
        return _place(input, index, constants, dim)
    shape = [rest.shape[0] if d == dim else size for d, size in enumerate(input.shape)]
    return constants.expand(shape).index_copy(dim, index, input)


def _place(input: Tensor, index: Tensor, constants: Tensor, dim: int) -> Tensor:
    """``scatter_channels`` as a concatenation and a gather, for which onnxruntime needs no transposition; it
    computes the order, of buffers alone, when it loads the model.
    """
    channels = torch.arange(constants.shape[dim], device=index.device)
    rank = channels + channels.shape[0]
    placed_first = rank.index_copy(0, index, index).argsort()
    rest = constants.index_select(dim, placed_first[index.shape[0] :])
    shape = [rest.shape[dim] if d == dim else size for d, size in enumerate(input.shape)]
    return torch.cat([input, rest.expand(shape)], dim).index_select(dim, placed_first.argsort())


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


def rms_norm(
    input: Tensor, mask: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float | None
) -> Tensor:
    """RMSNorm over the kept channels of the last axes (``mask`` as for ``layer_norm``; pruned outputs are 0).

    ``y = m · x / √(Σ m·x² / Σ m + eps) · w`` (Zhang, Sennrich 2019, restricted to the kept entries); ``eps``
    is the smallest step of the dtype where it is ``None``.
    """
    kept = input * mask
    axes = tuple(range(-len(normalized_shape), 0))
    square = (kept * kept).sum(axes, keepdim=True) / mask.expand(normalized_shape).sum()
    y = kept * torch.rsqrt(square + (torch.finfo(input.dtype).eps if eps is None else eps))
    return y if weight is None else y * weight


def mean(
    input: Tensor,
    mask: Tensor,
    dim: list[int] | None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean over the kept entries of the dimensions ``dim``: ``Σ m·x / Σ m``.

    ``mask`` has one dimension for each entry of ``dim`` (for each dimension of ``input`` where it is
    ``None``), in their order, of its size or 1.
    """
    m, dims = _along(input, mask, dim)
    x = input if dtype is None else input.to(dtype)
    return (x * m).sum(dims, keepdim=keepdim) / _count(input, m, dims)


def var(
    input: Tensor,
    mask: Tensor,
    dim: list[int] | None,
    unbiased: bool | None = None,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    """Variance over the kept entries of the dimensions ``dim`` (``mask`` as for ``mean``):
    ``Σ m·(x − μ)² / (Σ m − correction)``, with a correction of 1 unless it, or ``unbiased``, says otherwise.
    """
    m, dims = _along(input, mask, dim)
    count = _count(input, m, dims)
    centred = (input - (input * m).sum(dims, keepdim=True) / count) * m
    less = (1 if unbiased is None else int(unbiased)) if correction is None else correction
    return (centred * centred).sum(dims, keepdim=keepdim) / (count - less)


def std(
    input: Tensor,
    mask: Tensor,
    dim: list[int] | None,
    unbiased: bool | None = None,
    correction: float | None = None,
    keepdim: bool = False,
) -> Tensor:
    """Square root of ``var``."""
    return var(input, mask, dim, unbiased, correction, keepdim).sqrt()


def amax(input: Tensor, mask: Tensor, dim: list[int] | None, keepdim: bool = False) -> Tensor:
    """Maximum over the kept entries of the dimensions ``dim`` (``mask`` as for ``mean``)."""
    m, dims = _along(input, mask, dim)
    return input.masked_fill(m == 0, -math.inf).amax(dims, keepdim=keepdim)


def amin(input: Tensor, mask: Tensor, dim: list[int] | None, keepdim: bool = False) -> Tensor:
    """Minimum over the kept entries of the dimensions ``dim`` (``mask`` as for ``mean``)."""
    m, dims = _along(input, mask, dim)
    return input.masked_fill(m == 0, math.inf).amin(dims, keepdim=keepdim)


def softmax(input: Tensor, mask: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax over the kept entries of ``dim`` (``mask`` ``[size of dim]``); pruned outputs are 0."""
    m, _ = _along(input, mask, [dim])
    return input.masked_fill(m == 0, -math.inf).softmax(dim, dtype)


def standardize(
    input: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """``F.batch_norm`` with the statistics of ``input`` itself, over the kept entries of all dimensions but 1
    (``mask`` has one dimension for each of them): weight standardization (Qiao et al. 2019) calls it on a
    weight seen as ``[1, filters, weights per filter]``.
    """
    dims = [d for d in range(input.dim()) if d != 1]
    m, _ = _along(input, mask, dims)
    centred = (input - mean(input, mask, dims, keepdim=True)) * m
    y = centred * torch.rsqrt(var(input, mask, dims, correction=0, keepdim=True) + eps)
    shape = [-1 if d == 1 else 1 for d in range(input.dim())]
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape) * m


def _along(input: Tensor, mask: Tensor, dim: list[int] | None) -> tuple[Tensor, list[int]]:
    """The mask with as many dimensions as ``input``, and the dimensions it lies along."""
    dims = list(range(input.dim())) if not dim else [d % input.dim() for d in dim]
    shape = [1] * input.dim()
    for d, size in zip(dims, mask.shape, strict=True):
        shape[d] = size
    order = sorted(range(len(dims)), key=dims.__getitem__)
    return mask.permute(order).reshape(shape), dims


def _count(input: Tensor, mask: Tensor, dims: list[int]) -> Tensor:
    """How many entries of ``dims`` are kept."""
    shape = [input.shape[d] if d in dims else 1 for d in range(input.dim())]
    return mask.expand(shape).sum()


_BY_OPERATOR = (layer_norm, group_norm, rms_norm, mean, var, std, amax, amin, softmax)
RESTRICTED = {f.__name__: f for f in _BY_OPERATOR} | {"batch_norm": standardize}
"""ATen operators that take statistics, and their forms over the kept entries: the parameters are named as the
operator's, with ``mask`` behind the input."""
