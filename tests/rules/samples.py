"""For every operator with a rule a small network that uses it: stem → operator → linear readout.

The stem makes 8 channels, some of which the tests mask; the readout sums over one dimension of the
operator's result, some slices of which it does not read. ``captured`` names the operator that the capture
really records where it is another one than the rule's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten
CHANNELS = 8
SPACE: dict[int, tuple[int, ...]] = {0: (), 1: (6,), 2: (5, 4), 3: (3, 4, 3)}

Body = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """``body(net, x)`` on the stem's result; ``axis`` is the dimension of its result that is read out."""

    body: Body
    rank: int = 2
    axis: int = 1
    captured: str | None = None
    layers: dict[str, Callable[[], nn.Module]] = field(default_factory=dict)
    restricted: bool = False
    """Appears only where a dependency-aware mask goes through a normalization."""
    compacted: bool = False
    """Appears only where speedup compacts a layer."""
    keeps: bool = False
    """Nothing of the stem may go: the operator needs every channel."""
    bug: str | None = None
    """What is known to be wrong in fxcompress: the sample is tested alone and expected to fail."""

    def net(self) -> SampleNet:
        """The network, freshly initialised."""
        return SampleNet(self)

    def inputs(self, batch: int = 3) -> Tensor:
        """A random float64 input."""
        shape = (batch, 3, *SPACE[self.rank])
        return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


class SampleNet(nn.Module):
    """Stem, the sample's body, readout over ``axis`` of its result."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        stems: list[type[nn.Module]] = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d]
        arguments = (3, CHANNELS) if sample.rank == 0 else (3, CHANNELS, 1)
        self.stem = stems[sample.rank](*arguments)
        for name, make in sample.layers.items():
            self.add_module(name, make())
        self.body = (sample.body,)
        self.axis = sample.axis
        with torch.no_grad():
            self.eval()
            width = self._made(torch.randn(2, 3, *SPACE[sample.rank])).shape[-1]
            self.train()
        self.head = nn.Linear(width, 3)

    def _made(self, x: Tensor) -> Tensor:
        y = self.body[0](self, self.stem(x))
        return (y if y.is_floating_point() else y.to(x.dtype)).movedim(self.axis, -1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self._made(x))
        return result


class InlinedNorm(nn.BatchNorm2d):
    """A BatchNorm subclass with code of its own, which export inlines."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input * 0.9, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum or 0.0, self.eps,
        )  # fmt: skip


class Index(nn.Module):
    """Holds an index as a buffer."""

    index: Tensor

    def __init__(self, *index: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(index))


class Twice(nn.Module):
    """A layer of two inputs, given one and a function of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x, x.relu() * 0.5)
        return result


def _layer(make: Callable[[], nn.Module], rank: int = 2, **options: Any) -> Sample:
    return Sample(lambda m, x: m.layer(x), rank, layers={"layer": make}, **options)


def _op(function: Callable[[Tensor], Any], rank: int = 2, **options: Any) -> Sample:
    return Sample(lambda _, x: function(x), rank, **options)


def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """The operator as transformers defines it: rows up to ``ends[g]`` belong to group g."""
    if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        torch.library.define(
            "transformers::grouped_mm_fallback", "(Tensor input, Tensor weight, Tensor offs) -> Tensor"
        )
        torch.library.impl("transformers::grouped_mm_fallback", "CPU", _grouped_on_cpu)
        torch.library.register_fake(
            "transformers::grouped_mm_fallback", lambda x, w, _: x.new_empty(x.shape[0], w.shape[2])
        )
    result: Tensor = torch.ops.transformers.grouped_mm_fallback(x, weight, ends)
    return result


def _grouped_on_cpu(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    bounds = [0, *ends.tolist()]
    result = x.new_zeros(len(x), weight.shape[2])
    for matrix, start, end in zip(weight, bounds[:-1], bounds[1:], strict=True):
        result[start:end] = x[start:end] @ matrix
    return result


def _gated(halves: tuple[Tensor, ...]) -> Tensor:
    return halves[0] * halves[1].sigmoid()


def _written_behind_dropout(m: nn.Module, x: Tensor) -> Tensor:
    h = x * 1.5
    y = F.dropout(h, 0.3, m.training)
    y *= 0.7
    return h + y.tanh()


POINTWISE: dict[str, Sample] = {
    "pointwise": _op(torch.sigmoid, captured="sigmoid"),
    "log_sigmoid": _op(F.logsigmoid),
    "masked_fill": _op(lambda x: x.masked_fill(x < 0.1111, -0.4)),
    "where": _op(lambda x: torch.where(x > 0.1234, x, 0.1 * x)),
    "hardswish": _op(F.hardswish),
    "rsub": _op(lambda x: torch.rsub(x, 1.5)),
    "floor_divide": _op(lambda x: torch.floor_divide(x, x.abs() + 1.0)),
    "true_divide": _op(lambda x: aten.true_divide.Tensor(x, x.abs() + 1.0)),
    "zeros_like": _op(lambda x: torch.maximum(x, torch.zeros_like(x) - 0.3)),
    "ones_like": _op(lambda x: torch.ones_like(x) - x),
    "full_like": _op(lambda x: torch.full_like(x, 0.3) * x),
    "__and__": _op(lambda x: aten.__and__.Tensor(x > 0.1234, x < 0.8)),
    "__or__": _op(lambda x: aten.__or__.Tensor(x < 0.1234, x > 0.8)),
    "__xor__": _op(lambda x: aten.__xor__.Tensor(x > 0.1234, x > 0.8)),
    "dropout": _layer(lambda: nn.Dropout(0.3)),
    "feature_dropout": _op(lambda x: aten.feature_dropout.default(x, 0.3, False)),
    "alpha_dropout": _op(lambda x: aten.alpha_dropout.default(x, 0.3, False)),
    "feature_alpha_dropout": _op(lambda x: aten.feature_alpha_dropout.default(x, 0.3, False)),
    "fxcompress.dropout": Sample(lambda m, x: F.dropout(x, 0.3, m.training)),
    "fxcompress.unless_training": Sample(_written_behind_dropout),
    "contiguous": _op(lambda x: x.permute(0, 2, 3, 1).contiguous(), axis=3),
    "clone": _op(lambda x: x.clone()),
    "detach": _op(lambda x: x.detach()),
    "alias": _op(lambda x: aten.alias.default(x)),
    "lift_fresh_copy": _op(lambda x: aten.lift_fresh_copy.default(x)),
    "detach_copy": _op(lambda x: aten.detach_copy.default(x)),
    "to": _op(lambda x: (x > 0.1234).to(torch.float64)),
    "_to_copy": _op(lambda x: aten._to_copy.default(x > 0.1234, dtype=torch.float64)),
    "type_as": _op(lambda x: (x > 0.1234).type_as(x)),
    "prelu": _layer(lambda: nn.PReLU(CHANNELS)),
    "glu": _op(lambda x: F.glu(x, 1)),
}

CONVOLUTION: dict[str, Sample] = {
    "conv1d": _layer(lambda: nn.Conv1d(8, 6, 3, padding=1), 1),
    "conv2d": _layer(lambda: nn.Conv2d(8, 6, 3, padding=1)),
    "conv3d": _layer(lambda: nn.Conv3d(8, 6, 2, padding=1), 3),
    "conv_transpose1d": _layer(lambda: nn.ConvTranspose1d(8, 6, 3), 1),
    "conv_transpose2d": _layer(lambda: nn.ConvTranspose2d(8, 6, 3, groups=2)),
    "conv_transpose3d": _layer(lambda: nn.ConvTranspose3d(8, 6, 2, stride=2), 3),
}


def _parameter(*shape: int) -> Callable[[], nn.Module]:
    return lambda: nn.ParameterList([nn.Parameter(torch.randn(shape))])


LINEAR: dict[str, Sample] = {
    "linear": _layer(lambda: nn.Linear(8, 6), 0),
    "matmul": Sample(lambda m, x: torch.matmul(x, m.w[0]), 0, layers={"w": _parameter(8, 6)}),
    "mm": Sample(lambda m, x: aten.mm.default(x, m.w[0]), 0, layers={"w": _parameter(8, 6)}),
    "bmm": _op(lambda x: torch.bmm(x.relu(), x.sigmoid().transpose(1, 2)), 1, keeps=True),
    "einsum": Sample(
        lambda m, x: torch.einsum("nchw,co->nohw", x, m.w[0]), layers={"w": _parameter(8, 6)}
    ),
    "embedding": Sample(
        lambda m, x: x + m.table(torch.tensor([0, 3, 1, 2])).t()[None, :, None, :],
        layers={"table": lambda: nn.Embedding(5, 8)},
        keeps=True,
    ),
}  # fmt: skip


def _recurrent(make: Callable[[], nn.Module]) -> Sample:
    def body(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.layer(x.mT)[0]
        return result

    return Sample(body, 1, axis=2, layers={"layer": make})


def _cell(make: Callable[[], nn.Module]) -> Sample:
    def body(m: Any, x: Tensor) -> Tensor:
        state = m.layer(x)
        result: Tensor = state[0] * state[1] if isinstance(state, tuple) else state
        return result

    return Sample(body, 0, layers={"layer": make})


RECURRENT: dict[str, Sample] = {
    "fxcompress.lstm": replace(_recurrent(lambda: nn.LSTM(8, 6, 2, batch_first=True)), captured=None),
    "fxcompress.gru": replace(
        _recurrent(lambda: nn.GRU(8, 6, bidirectional=True, batch_first=True)), captured=None
    ),
    "fxcompress.rnn_tanh": replace(_recurrent(lambda: nn.RNN(8, 6, batch_first=True)), captured=None),
    "fxcompress.rnn_relu": replace(
        _recurrent(lambda: nn.RNN(8, 6, 2, nonlinearity="relu", batch_first=True)), captured=None
    ),
    "lstm_cell": _cell(lambda: nn.LSTMCell(8, 6)),
    "gru_cell": _cell(lambda: nn.GRUCell(8, 6)),
    "rnn_tanh_cell": _cell(lambda: nn.RNNCell(8, 6)),
    "rnn_relu_cell": _cell(lambda: nn.RNNCell(8, 6, nonlinearity="relu")),
}

NORMALIZATION: dict[str, Sample] = {
    "batch_norm": _layer(lambda: nn.BatchNorm2d(8)),
    "fxcompress.batch_norm": _layer(lambda: InlinedNorm(8)),
    "instance_norm": _layer(lambda: nn.InstanceNorm2d(8, affine=True)),
    "layer_norm": _layer(lambda: nn.LayerNorm(8), 0, keeps=True),
    "fxcompress.layer_norm": _layer(lambda: nn.LayerNorm(8), 0, restricted=True),
    "rms_norm": _layer(lambda: nn.RMSNorm(8), 0, keeps=True),
    "fxcompress.rms_norm": _layer(lambda: nn.RMSNorm(8), 0, restricted=True),
    "group_norm": _layer(lambda: nn.GroupNorm(4, 8), keeps=True),
    "fxcompress.group_norm": _layer(lambda: nn.GroupNorm(2, 8), restricted=True),
}

POOLING: dict[str, Sample] = {
    "max_pool1d": _op(lambda x: F.max_pool1d(x, 2, padding=1), 1),
    "max_pool2d": _op(lambda x: F.max_pool2d(x, 2, padding=1)),
    "max_pool3d": _op(lambda x: F.max_pool3d(x, 2), 3),
    "max_pool1d_with_indices": _op(lambda x: aten.max_pool1d_with_indices.default(x, [2])[0], 1),
    "max_pool2d_with_indices": _op(lambda x: aten.max_pool2d_with_indices.default(x, [2, 2])[0]),
    "max_pool3d_with_indices": _op(lambda x: aten.max_pool3d_with_indices.default(x, [2, 2, 2])[0], 3),
    "avg_pool1d": _op(lambda x: F.avg_pool1d(x, 2, padding=1), 1),
    "avg_pool2d": _op(lambda x: F.avg_pool2d(x, 3, padding=1, count_include_pad=True)),
    "avg_pool3d": _op(lambda x: F.avg_pool3d(x, 2, padding=1, count_include_pad=False), 3),
    "adaptive_avg_pool1d": _op(lambda x: F.adaptive_avg_pool1d(x, 2), 1),
    "adaptive_avg_pool2d": _op(lambda x: F.adaptive_avg_pool2d(x, 2)),
    "adaptive_avg_pool3d": _op(lambda x: F.adaptive_avg_pool3d(x, 2), 3),
    "adaptive_max_pool1d": _op(lambda x: F.adaptive_max_pool1d(x, 2), 1),
    "adaptive_max_pool2d": _op(lambda x: F.adaptive_max_pool2d(x, 2)),
    "adaptive_max_pool3d": _op(lambda x: F.adaptive_max_pool3d(x, 2), 3),
    "upsample_nearest1d": _op(lambda x: F.interpolate(x, scale_factor=2.0), 1),
    "upsample_nearest2d": _op(lambda x: F.interpolate(x, size=(7, 9))),
    "upsample_nearest3d": _op(lambda x: F.interpolate(x, scale_factor=2.0), 3),
    "_upsample_nearest_exact1d": _op(lambda x: F.interpolate(x, size=9, mode="nearest-exact"), 1),
    "_upsample_nearest_exact2d": _op(lambda x: F.interpolate(x, size=9, mode="nearest-exact")),
    "_upsample_nearest_exact3d": _op(lambda x: F.interpolate(x, size=5, mode="nearest-exact"), 3),
    "upsample_linear1d": _op(lambda x: F.interpolate(x, size=9, mode="linear"), 1),
    "upsample_bilinear2d": _op(lambda x: F.interpolate(x, size=9, mode="bilinear", align_corners=True)),
    "upsample_trilinear3d": _op(lambda x: F.interpolate(x, size=5, mode="trilinear"), 3),
    "upsample_bicubic2d": _op(lambda x: F.interpolate(x, size=9, mode="bicubic")),
    "_upsample_bilinear2d_aa": _op(lambda x: F.interpolate(x, size=3, mode="bilinear", antialias=True)),
    "_upsample_bicubic2d_aa": _op(lambda x: F.interpolate(x, size=3, mode="bicubic", antialias=True)),
    "pad": _op(lambda x: F.pad(x, (1, 0, 2, 1), value=0.7), keeps=True),
    "constant_pad_nd": _op(lambda x: aten.constant_pad_nd.default(x, [0, 0, 0, 0, 1, 2], 0.3)),
    "pixel_shuffle": _op(lambda x: F.pixel_shuffle(x, 2), keeps=True),
    "pixel_unshuffle": _op(lambda x: F.pixel_unshuffle(x[:, :, :4], 2)),
    "channel_shuffle": _op(lambda x: F.channel_shuffle(x, 2)),
    "native_channel_shuffle": _op(lambda x: aten.native_channel_shuffle.default(x, 4)),
}

JOINING: dict[str, Sample] = {
    "cat": _op(lambda x: torch.cat([x, x.sigmoid()], 1)),
    "concat": _op(lambda x: aten.concat.default([x, x.sigmoid()], 1)),
    "concatenate": _op(lambda x: aten.concatenate.default([x.sigmoid(), x], 1)),
    "stack": _op(lambda x: torch.stack([x, x * 2.0], 1), axis=2),
    "split": _op(lambda x: torch.cat(torch.split(x, 3, 1)[::-1], 1)),
    "split_with_sizes": _op(lambda x: torch.cat(torch.split(x, [5, 3], 1)[::-1], 1)),
    "split_copy": _op(lambda x: torch.cat(aten.split_copy.Tensor(x, 3, 1)[::-1], 1)),
    "chunk": _op(lambda x: _gated(x.chunk(2, 1))),
    "unsafe_split": _op(lambda x: torch.cat(aten.unsafe_split.Tensor(x, 4, 1)[::-1], 1)),
    "unsafe_chunk": _op(lambda x: torch.cat(aten.unsafe_chunk.default(x, 3, 1)[::-1], 1)),
    "tensor_split": _op(lambda x: torch.cat(torch.tensor_split(x, 3, 1)[::-1], 1)),
    "unbind": _op(lambda x: (lambda rows: rows[0] * rows[2])(x.unbind(2))),
    "getitem": _op(lambda x: x.chunk(2, 1)[1]),
}

INDEXING: dict[str, Sample] = {
    "slice": _op(lambda x: x[:, 1:7:2]),
    "narrow": _op(lambda x: x.narrow(1, 2, 5)),
    "index_select": Sample(
        lambda m, x: x.index_select(1, m.order.index), layers={"order": lambda: Index(5, 0, 0, 3, 1)}
    ),
    "flip": _op(lambda x: x.flip(1)),
    "roll": _op(lambda x: x.roll(3, 1)),
    "select": _op(lambda x: x[:, :, 2]),
    "index": _op(lambda x: x[:, :, torch.tensor([2, 0, 0])]),
}

RESHAPING: dict[str, Sample] = {
    "reshape": _op(lambda x: x.reshape(x.shape[0], 8, 20)),
    "flatten": _op(lambda x: x.flatten(1)),
    "unflatten": _op(lambda x: x.unflatten(1, (4, 2)), axis=2),
    "squeeze": _op(lambda x: x.mean(2, keepdim=True).squeeze(2)),
    "unsqueeze": _op(lambda x: x.unsqueeze(1) * 2.0, axis=2),
    "view_as": _op(lambda x: x.flatten(2).sigmoid().view_as(x)),
    "reshape_as": _op(lambda x: x.flatten(2).sigmoid().reshape_as(x)),
    "permute": _op(lambda x: x.permute(0, 2, 3, 1), axis=3),
    "transpose": _op(lambda x: x.transpose(1, 3), axis=3),
    "t": _op(lambda x: x.t().sigmoid().t(), 0),
    "movedim": _op(lambda x: aten.movedim.int(x, 1, -1), axis=3),
    "moveaxis": _op(lambda x: aten.moveaxis.intlist(x, [1, 2], [3, 1]), axis=3),
    "swapaxes": _op(lambda x: aten.swapaxes.default(x, 1, 2), axis=2),
    "swapdims": _op(lambda x: aten.swapdims.default(x, 1, 2), axis=2),
    "numpy_T": _op(lambda x: aten.numpy_T.default(x).sigmoid().t(), 0),
    "mT": _op(lambda x: x.mT, 1, axis=2),
    "expand": _op(lambda x: x.mean(2, keepdim=True).expand(-1, -1, 7, -1)),
    "expand_as": _op(lambda x: x.mean(2, keepdim=True).expand_as(x) * 2.0),
    "broadcast_to": _op(lambda x: aten.broadcast_to.default(x[:, :1], [x.shape[0], 6, 5, 4]) * 1.0),
    "repeat": _op(lambda x: x.repeat(1, 2, 1, 3)),
    "tile": _op(lambda x: torch.tile(x, (1, 2, 1, 1))),
    "repeat_interleave": _op(lambda x: x.repeat_interleave(2, 1)),
}

REDUCTION: dict[str, Sample] = {
    "mean": _op(lambda x: x.mean((2, 3))),
    "fxcompress.mean": _op(lambda x: x * x.square().mean(-1, keepdim=True), 0, restricted=True),
    "fxcompress.var": _op(lambda x: x / x.var(1, keepdim=True).add(0.1), restricted=True),
    "fxcompress.std": _op(lambda x: x / x.std((1, 2), correction=0)[:, None, None], restricted=True),
    "amax": _op(lambda x: x.amax((2, 3))),
    "fxcompress.amax": _op(lambda x: x - x.amax(1, keepdim=True), restricted=True),
    "fxcompress.amin": _op(lambda x: x * x.amin((1, 2))[:, None, None], restricted=True),
    "fxcompress.softmax": _op(lambda x: x * x.softmax(1), restricted=True),
    "fxcompress.standardize": _op(
        lambda x: F.batch_norm(x.mT, None, None, training=True).mT, 1, restricted=True
    ),
    "amin": _op(lambda x: x.amin(2)),
    "median": _op(lambda x: x.median(2)[0]),
    "max": _op(lambda x: x.max(2)[0]),
    "min": _op(lambda x: x.min(2)[0]),
    "linalg_vector_norm": _op(lambda x: torch.linalg.vector_norm(x, 2, (2,))),
    "var": _op(lambda x: x.var((2, 3))),
    "std": _op(lambda x: x.std((2, 3), correction=0)),
    "any": _op(lambda x: (x > 0.9).any(2)),
    "all": _op(lambda x: (x > -0.9).all(2), keeps=True),
    "prod": _op(lambda x: x.prod(2)),
    "nansum": _op(lambda x: x.nansum((2, 3))),
    "count_nonzero": _op(lambda x: x.relu().count_nonzero((2,))),
    "argmax": _op(lambda x: x.argmax(2), keeps=True),
    "argmin": _op(lambda x: x.argmin(2), keeps=True),
    "logsumexp": _op(lambda x: x.logsumexp(2), keeps=True),
    "var_mean": _op(lambda x: sum(torch.var_mean(x, (2, 3))), keeps=True),
    "std_mean": _op(lambda x: sum(torch.std_mean(x, (2, 3))), keeps=True),
    "aminmax": _op(lambda x: (lambda r: r[0] * r[1])(torch.aminmax(x, dim=2))),
    "mode": _op(lambda x: x.mode(2)[0]),
    "sum": _op(lambda x: x.sum((2, 3))),
    "nanmedian": _op(lambda x: x.nanmedian(2)[0]),
    "kthvalue": _op(lambda x: x.kthvalue(2, 3)[0]),
    "quantile.scalar": _op(lambda x: x.quantile(0.3, 2), captured="quantile"),
    "softmax": _op(lambda x: x.softmax(2)),
    "log_softmax": _op(lambda x: x.log_softmax(1), keeps=True),
    "_softmax": _op(lambda x: aten._softmax.default(x, 3, False)),
    "cumsum": _op(lambda x: x.cumsum(2)),
    "cumprod": _op(lambda x: x.cumprod(2)),
    "cummax": _op(lambda x: x.cummax(2)[0]),
    "cummin": _op(lambda x: x.cummin(3)[0]),
    "topk": _op(lambda x: x.topk(2, 3)[0]),
    "msort": _op(lambda x: torch.msort(x.transpose(0, 2)).transpose(0, 2)),
    "diff": _op(lambda x: torch.diff(x, dim=3, prepend=x[..., 1:2])),
    "argsort": _op(lambda x: x.argsort(3), keeps=True),
    "logcumsumexp": _op(lambda x: x.logcumsumexp(2), keeps=True),
    "sort": _op(lambda x: x.sort(2)[0]),
}

CREATION: dict[str, Sample] = {
    "zeros": _op(lambda x: torch.cat([x, torch.zeros(x.shape[0], 2, 5, 4, dtype=x.dtype)], 1)),
    "ones": _op(lambda x: x * torch.ones(1, 8, 1, 1, dtype=x.dtype)),
    "full": _op(lambda x: x + torch.full((8, 1, 1), 0.3, dtype=x.dtype)),
    "empty": _op(lambda x: x + aten.empty.memory_format([8, 1, 1], dtype=x.dtype).fill_(0.25)),
    "new_zeros": _op(lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, 5, 4)], 1)),
    "new_ones": _op(lambda x: x * x.new_ones(8, 1, 1)),
    "new_full": _op(lambda x: x + x.new_full((1, 8, 1, 1), 0.4)),
    "new_empty": _op(lambda x: x + x.new_empty((8, 1, 1)).fill_(0.25)),
    "arange": _op(lambda x: x * torch.arange(8, dtype=x.dtype)[:, None, None], keeps=True),
    "linspace": _op(lambda x: x + torch.linspace(0.0, 1.0, 8, dtype=x.dtype)[:, None, None], keeps=True),
    "scalar_tensor": _op(lambda x: x * aten.scalar_tensor.default(0.3, dtype=x.dtype)),
    "eye": _op(lambda x: x @ torch.eye(8, dtype=x.dtype), 0, keeps=True),
    "tril_indices": _op(lambda x: x + torch.tril_indices(2, 4)[0, 1].to(x.dtype)),
    "triu_indices": _op(lambda x: x + torch.triu_indices(2, 4)[1, 2].to(x.dtype)),
    "sym_size": _op(lambda x: x * x.shape[0]),
    "item": _op(lambda x: x * torch.ones(3).sum().long().item()),
}


def _picked(x: Tensor) -> Tensor:
    """An index along the last dimension, of the shape of ``x[..., :2]``, that varies."""
    return (x[..., :2] > 0.1).long() + x.shape[-1] - 2


def _table(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


INDEXING |= {
    "fliplr": _op(lambda x: torch.fliplr(x)),
    "flipud": _op(lambda x: torch.flipud(x.transpose(0, 1)).transpose(0, 1)),
}

ADDRESSING: dict[str, Sample] = {
    "gather": _op(lambda x: x.gather(3, _picked(x))),
    "scatter": _op(lambda x: x.scatter(3, _picked(x), x * 2.0)),
    "scatter_add": _op(lambda x: x.scatter_add(3, _picked(x), x * 2.0)),
    "scatter_reduce": _op(lambda x: x.scatter_reduce(3, _picked(x), x * 2.0, "amax")),
    "index_add": _op(lambda x: x.index_add(3, torch.tensor([0, 2]), x[..., :2])),
    "index_copy": _op(lambda x: x.index_copy(3, torch.tensor([0, 2]), x[..., :2] * 2.0)),
    "index_fill": _op(lambda x: x.index_fill(3, torch.tensor([0, 2]), 0.0)),
    "index_reduce": _op(lambda x: x.index_reduce(3, torch.tensor([0, 2]), x[..., :2], "prod")),
    "index_put": _op(
        lambda x: aten.index_put.default(x, [None, None, torch.tensor([1, 3])], x[:, :, :2] * 2.0)
    ),
    "embedding_bag": Sample(
        lambda m, x: x.amax((2, 3)) * m.table((x[:, :3, 0, 0] > 0).long()) + x[:, :, 0, 0],
        layers={"table": lambda: nn.EmbeddingBag(5, 8)},
    ),
    "unfold": _op(lambda x: x.unfold(2, 2, 1)),
    "searchsorted": _op(lambda x: torch.searchsorted(_table(-1.0, 0.05, 1.0), x)),
    "bucketize": _op(lambda x: torch.bucketize(x, _table(-1.0, 0.05, 1.0), right=True)),
    "isin": _op(lambda x: torch.isin((x > 0.1).long(), torch.tensor([1, 3]))),
    "slice_scatter": _op(lambda x: torch.slice_scatter(x, x[..., :2] * 2.0, 3, 0, 4, 2)),
    "select_scatter": _op(lambda x: torch.select_scatter(x, x[0] * 2.0, 0, 1)),
    "take": _op(lambda x: x * torch.take(x, torch.tensor([3])), keeps=True),
    "masked_select": _op(lambda x: x + x.masked_select(x > 0.5).sum(), keeps=True),
    "masked_scatter": _op(lambda x: x.masked_scatter(x > 0.5, x.sigmoid()), keeps=True),
    "nonzero": _op(lambda x: x + (x > 0.5).nonzero().sum(), keeps=True),
    "bincount": _op(lambda x: x + torch.bincount((x > 0.3).flatten().long(), minlength=2)[0], keeps=True),
    "histc": _op(lambda x: x + torch.histc(x, 3, -1.0, 1.0)[1], keeps=True),
    "cartesian_prod": _op(lambda x: x + torch.cartesian_prod(x[0, :, 0, 0], x[0, 0, 0])[0, 0], keeps=True),
}

PRODUCTS: dict[str, Sample] = {
    "dot": _op(lambda x: x * torch.dot(x.sum((0, 2)), x.sum((0, 2)).exp()), 1),
    "vdot": _op(lambda x: x * torch.vdot(x.sum((0, 2)), x.sum((0, 2)).exp()), 1),
    "transformers::grouped_mm_fallback": Sample(
        lambda m, x: _grouped(x, m.w[0], torch.tensor([1, 2], dtype=torch.int32)),
        0,
        layers={"w": _parameter(2, 8, 6)},
    ),
    "mv": Sample(lambda m, x: torch.mv(x, m.w[0])[:, None] * x, 0, layers={"w": _parameter(8)}),
    "outer": _op(lambda x: torch.outer(x.sum(0), x.sum(1)[:2]), 0, axis=0),
    "inner": Sample(lambda m, x: torch.inner(x, m.w[0]), 0, layers={"w": _parameter(6, 8)}),
    "linalg_vecdot": _op(lambda x: torch.linalg.vecdot(x, x.sigmoid(), dim=-1), 1),
    "tensordot": Sample(
        lambda m, x: torch.tensordot(x, m.w[0], dims=([1, 3], [0, 2])), layers={"w": _parameter(8, 6, 4)}
    ),
    "linalg_multi_dot": Sample(
        lambda m, x: torch.linalg.multi_dot([x, m.w[0], m.v[0]]),
        0,
        layers={"w": _parameter(8, 6), "v": _parameter(6, 5)},
    ),
    "chain_matmul": Sample(
        lambda m, x: aten.chain_matmul.default([x, m.w[0]]), 0, layers={"w": _parameter(8, 6)}
    ),
    "baddbmm": _op(lambda x: torch.baddbmm(x, x * 2.0, torch.ones(x.shape[0], 6, 6, dtype=x.dtype)), 1),
    "addbmm": Sample(
        lambda m, x: torch.addbmm(m.w[0], x.mT, x)[None] * 1.0, 1, layers={"w": _parameter(6, 6)}
    ),
    "addmv": Sample(
        lambda m, x: torch.addmv(x.sum(1), x, m.w[0])[:, None] * x, 0, layers={"w": _parameter(8)}
    ),
    "addr": Sample(lambda m, x: torch.addr(x, x.sum(1), m.w[0]), 0, layers={"w": _parameter(8)}, keeps=True),
    "bilinear": _layer(lambda: Twice(nn.Bilinear(8, 8, 6)), 0),
    "cosine_similarity": _op(lambda x: F.cosine_similarity(x, x.relu() * 2.0, 1)),
    "cdist": _op(lambda x: torch.cdist(x.mT, x.mT.relu() * 0.5), 1),
    "pairwise_distance": _op(lambda x: F.pairwise_distance(x, x * 0.5), keeps=True),
    "linalg_cross": _op(lambda x: torch.linalg.cross(x[..., :3, :], x[..., 1:4, :] * 2.0, dim=2)),
    "cross": _op(lambda x: aten.cross.default(x[..., :3], x[..., 1:4] * 2.0, 3)),
    "kron": _op(lambda x: torch.kron(x, torch.ones(1, 2, 1, 1, dtype=x.dtype))),
}


def _both(z: Tensor) -> Tensor:
    return z.real + 0.5 * z.imag


FOURIER: dict[str, Sample] = {
    "fft_fft": _op(lambda x: _both(torch.fft.fft(x, dim=2))),
    "fft_ifft": _op(lambda x: _both(torch.fft.ifft(x, n=7))),
    "fft_rfft": _op(lambda x: _both(torch.fft.rfft(x, norm="ortho"))),
    "fft_irfft": _op(lambda x: torch.fft.irfft(torch.fft.rfft(x), n=x.shape[-1])),
    "fft_hfft": _op(lambda x: torch.fft.hfft(x)),
    "fft_ihfft": _op(lambda x: _both(torch.fft.ihfft(x))),
    "fft_fft2": _op(lambda x: torch.fft.fft2(x).abs()),
    "fft_ifft2": _op(lambda x: _both(torch.fft.ifft2(x))),
    "fft_rfft2": _op(lambda x: _both(torch.fft.rfft2(x))),
    "fft_irfft2": _op(lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5)),
    "fft_hfft2": _op(lambda x: torch.fft.hfft2(x)),
    "fft_ihfft2": _op(lambda x: _both(torch.fft.ihfft2(x))),
    "fft_fftn": _op(lambda x: _both(torch.fft.fftn(x, dim=(2, 3)))),
    "fft_ifftn": _op(lambda x: _both(torch.fft.ifftn(x, dim=(3, 2)))),
    "fft_rfftn": _op(lambda x: _both(torch.fft.rfftn(x, s=(5, 4), dim=(2, 3)))),
    "fft_irfftn": _op(lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)), dim=(2, 3))),
    "fft_hfftn": _op(lambda x: torch.fft.hfftn(x, dim=(2, 3))),
    "fft_ihfftn": _op(lambda x: _both(torch.fft.ihfftn(x, dim=(2, 3)))),
    "fft_fftshift": _op(lambda x: torch.fft.fftshift(x, dim=(2, 3))),
    "fft_ifftshift": _op(lambda x: torch.fft.ifftshift(x, dim=2)),
    "real": _op(lambda x: torch.fft.fft(x).real),
    "imag": _op(lambda x: torch.fft.fft(x).imag),
    "complex": _op(lambda x: torch.complex(x, x.relu()).abs()),
    "polar": _op(lambda x: _both(torch.polar(x.abs(), x))),
    "_conj": _op(lambda x: _both(torch.fft.fft(x) * torch.fft.fft(x.relu()).conj())),
    "resolve_conj": _op(lambda x: _both(aten.resolve_conj.default(torch.fft.fft(x)))),
    "resolve_neg": _op(lambda x: aten.resolve_neg.default(x) * 2.0),
    "view_as_real": _op(lambda x: torch.view_as_real(torch.fft.fft(x)).flatten(3)),
    "view_as_complex": _op(lambda x: torch.view_as_complex(x.unflatten(3, (2, 2)).contiguous()).abs()),
}

DIAGONALS: dict[str, Sample] = {
    "tril": _op(lambda x: x.tril()),
    "triu": _op(lambda x: x.triu(1)),
    "diagonal": _op(lambda x: x.diagonal(1, 2, 3)),
    "diag_embed": _op(lambda x: torch.diag_embed(x, 1)),
    "trace": _op(lambda x: x * torch.trace(x), 0, keeps=True),
    "diag": _op(lambda x: x * torch.diag(x).sum(), 0, keeps=True),
}

CREATION |= {
    "fill": _op(lambda x: torch.cat([x, aten.fill.Scalar(x, 0.3)], 1)),
    "zero": _op(lambda x: torch.cat([aten.zero.default(x), x], 1)),
    "empty_like": _op(lambda x: x + aten.fill.Scalar(torch.empty_like(x), 0.25)),
    "rand": _op(lambda x: x * torch.rand(8, 1, 1, dtype=x.dtype).mul(0.0).exp(), keeps=True),
    "randn": _op(lambda x: x * torch.randn(8, 1, 1, dtype=x.dtype).mul(0.0).exp(), keeps=True),
    "randint": _op(lambda x: x * torch.randint(3, (8, 1, 1)).mul(0).exp(), keeps=True),
    "randperm": _op(lambda x: x * (torch.randperm(8)[:, None, None] >= 0), keeps=True),
    "rand_like": _op(lambda x: x * torch.rand_like(x).mul(0.0).exp(), keeps=True),
    "randn_like": _op(lambda x: x * torch.randn_like(x).mul(0.0).exp(), keeps=True),
    "randint_like": _op(lambda x: x * torch.randint_like(x, 3).mul(0.0).exp(), keeps=True),
    "bernoulli": _op(lambda x: x * torch.bernoulli(x.sigmoid()).mul(0.0).exp(), keeps=True),
    "exponential": _op(lambda x: x * aten.exponential.default(x).mul(0.0).exp(), keeps=True),
    "normal_functional": _op(lambda x: x * aten.normal_functional.default(x).mul(0.0).exp(), keeps=True),
    "uniform": _op(lambda x: x * aten.uniform.default(x).mul(0.0).exp(), keeps=True),
    "multinomial": _op(lambda x: x * torch.multinomial(x.sigmoid(), 8).mul(0).exp(), 0, keeps=True),
    "one_hot": _op(lambda x: x[..., None] * F.one_hot((x > 0.1).long(), 3)),
    "meshgrid": _op(
        lambda x: (lambda g: g[0] * g[1])(torch.meshgrid(x.mean((0, 2)), x[:, 0].mean(0), indexing="ij")),
        1,
        axis=0,
    ),
}

FURTHER: dict[str, Sample] = {
    "addmm": Sample(
        lambda m, x: torch.addmm(m.b[0], x, m.w[0]), 0, layers={"w": _parameter(8, 6), "b": _parameter(6)}
    ),
    "scaled_dot_product_attention": _op(
        lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1.0), 1, axis=2
    ),
    "_weight_norm": _layer(lambda: nn.utils.weight_norm(nn.Conv2d(8, 6, 1))),
    "min.other": _op(lambda x: aten.min.other(x, x * 0.5), captured="min"),
    "max.other": _op(lambda x: aten.max.other(x, x * 0.5), captured="max"),
    "grid_sampler": _op(
        lambda x: F.grid_sample(
            x, torch.zeros(1, 2, 2, 2, dtype=x.dtype).expand(x.shape[0], -1, -1, -1) + 0.1, align_corners=True
        )
    ),
    "im2col": _op(lambda x: F.unfold(x, 2)),
    "col2im": _op(lambda x: F.fold(F.unfold(x, 2), (5, 4), 2)),
}

KEEPING = ("scaled_dot_product_attention", "_weight_norm", "grid_sampler")
"""Operators whose rule lets nothing around them go (yet)."""
FURTHER.update({op: replace(sample, keeps=True) for op, sample in FURTHER.items() if op in KEEPING})

COMPACTION: dict[str, Sample] = {
    "fxcompress.gather_channels": Sample(
        lambda m, x: torch.cat([m.layer(x), x.softmax(1)], 1),
        layers={"layer": lambda: nn.Conv2d(8, 6, 3, padding=1)},
        compacted=True,
    ),
    "fxcompress.scatter_channels": _op(lambda x: x.softmax(1), compacted=True),
}

FAMILIES: dict[str, dict[str, Sample]] = {
    "pointwise": POINTWISE,
    "convolution": CONVOLUTION,
    "linear": LINEAR,
    "recurrent": RECURRENT,
    "normalization": NORMALIZATION,
    "pooling": POOLING,
    "joining": JOINING,
    "indexing": INDEXING,
    "reshaping": RESHAPING,
    "reduction": REDUCTION,
    "creation": CREATION,
    "addressing": ADDRESSING,
    "products": PRODUCTS,
    "fourier": FOURIER,
    "diagonals": DIAGONALS,
    "further": FURTHER,
    "compaction": COMPACTION,
}


SAMPLES: dict[str, Sample] = {name: sample for family in FAMILIES.values() for name, sample in family.items()}
