"""Every operator with a rule as an expression, so that random networks hold each of them often enough.

`EXPRESSIONS` maps an operator's name to what it reads and to the source of a value a network goes on with;
`tests/generator/test_expressions.py` checks that the capture of each records its operator, and that no
operator with a rule is missing. Integer, boolean and complex results come back as a float contribution;
random ones as a factor `(0 · random).exp() = 1`, so that no law depends on the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, TOKENS, step
from tests.generator.spec import KNOB_TOP

KNOBS = KNOB_TOP + 1


@dataclass(frozen=True)
class Expression:
    """`code` over `{x}`, a map of `rank` spatial axes (`None`: of any) or tokens (`TOKENS`).

    `{c}` is the number of its channels or features, `{n}` the size of its last spatial axis or the number of
    tokens. `{m}` is an attribute of the model made by `layer`.
    """

    reads: int | str | None
    code: str
    layer: str = ""

    def emit(self, draft: Draft, x: Value) -> Value:
        """Write the expression for `x`, a value of what it reads."""
        sizes = {"c": x.shape[-1 if x.tokens else 1], "n": x.shape[1 if x.tokens else -1]}
        made = {"m": draft.attribute("layer", self.layer.format(**sizes))} if self.layer else {}
        if "self.training" in self.code:
            draft.flags.add("functional randomness")
        return draft.block(f"OUT = {self.code.format(x=x, **sizes, **made)}")


def E(reads: int | str | None, code: str, layer: str = "") -> Expression:
    """An entry of the table."""
    return Expression(reads, code, layer)


T = TOKENS
RANDOM = "{{x}} * ({}).mul(0).exp()"
SIX = "nn.Parameter(torch.ones({c}, 6))"
SQUARE = "nn.Parameter(torch.ones({c}, {c}))"
VECTOR = "nn.Parameter(torch.ones({c}))"
CONV = "nn.Conv2d({c}, 8, 1)"
LOW_RANK = "nn.ParameterList([nn.Parameter(torch.ones({c}, 3)), nn.Parameter(torch.ones(3, 3))])"
PICKED = "({x}[..., :2] > 0.1317).long() + {n} - 2"
TABLE = "torch.tensor([-1.0137, 0.0517, 1.0217], dtype={x}.dtype)"


def noise(code: str) -> str:
    """`x` times one, computed from random numbers."""
    return RANDOM.format(code)


def both(code: str) -> str:
    """Both parts of a complex tensor, as one."""
    return f"(lambda z: 0.2 * (z.real + 0.5 * z.imag))({code})"


POINTWISE = {
    "log_sigmoid": E(None, "F.logsigmoid({x})"),
    "masked_fill": E(None, "{x}.masked_fill({x} < 0.1111, -0.4)"),
    "where": E(T, "torch.where({x} > 0.1234, {x}, 0.1 * {x})"),
    "hardswish": E(None, "F.hardswish({x})"),
    "rsub": E(T, "torch.rsub({x}, 1.5)"),
    "true_divide": E(T, "torch.true_divide({x}, {x}.abs() + 1.0)"),
    "floor_divide": E(T, "{x} + 0.1 * torch.floor_divide({x}, {x}.square() + 0.5137)"),
    "zeros_like": E(T, "torch.maximum({x}, torch.zeros_like({x}) - 0.3)"),
    "ones_like": E(T, "torch.ones_like({x}) - {x}"),
    "full_like": E(None, "torch.full_like({x}, 0.3) * {x}"),
    "__and__": E(None, "{x} * (({x} > -0.7123) & ({x} < 0.9137))"),
    "__or__": E(T, "{x} * (({x} > 0.1317) | ({x} < -0.3317))"),
    "__xor__": E(T, "{x} * (({x} > 0.1317) ^ ({x} > 0.8317))"),
    "dropout": E(T, "{m}({x})", "nn.Dropout(0.3)"),
    "fxcompress.dropout": E(T, "F.dropout({x}, 0.3, self.training)"),
    "feature_dropout": E(2, "F.dropout2d({x}, 0.3, False)"),
    "alpha_dropout": E(None, "F.alpha_dropout({x}, 0.3, False)"),
    "feature_alpha_dropout": E(2, "F.feature_alpha_dropout({x}, 0.3, False)"),
    "contiguous": E(T, "{x}.mT.contiguous().mT"),
    "clone": E(T, "{x}.clone()"),
    "detach": E(T, "{x} + {x}.detach().tanh()"),
    "alias": E(T, "{x}[...] * 1.5"),
    "lift_fresh_copy": E(T, "{x} * torch.tensor(0.75, dtype={x}.dtype)"),
    "detach_copy": E(T, "torch.detach_copy({x})"),
    "to": E(T, "{x} * ({x} > 0.1234).to({x}.dtype)"),
    "_to_copy": E(
        T, "{x}.clone()\nOUT.reshape({x}.shape[0], -1).mul_(0.5)\nOUT = OUT * (OUT > 0.1234).to({x}.dtype)"
    ),
    "type_as": E(T, "{x} * ({x} > 0.1234).type_as({x})"),
    "prelu": E(None, "{m}({x})", "nn.PReLU({c})"),
    "glu": E(2, "F.glu({m}({x}), 1)", CONV),
}

CONVOLUTION = {
    "conv1d": E(1, "{m}({x})", "nn.Conv1d({c}, 6, 3, padding=1)"),
    "conv2d": E(2, "{m}({x})", "nn.Conv2d({c}, 6, 3, padding=1)"),
    "conv3d": E(3, "{m}({x})", "nn.Conv3d({c}, 6, 2, padding=1)"),
    "conv_transpose1d": E(1, "{m}({x})", "nn.ConvTranspose1d({c}, 6, 3)"),
    "conv_transpose2d": E(2, "{m}({x})", "nn.ConvTranspose2d({c}, 6, 3)"),
    "conv_transpose3d": E(3, "{m}({x})", "nn.ConvTranspose3d({c}, 4, 2)"),
}

LINEAR = {
    "linear": E(T, "{m}({x})", "nn.Linear({c}, 6)"),
    "matmul": E(T, "torch.matmul({x}, {m})", SIX),
    "mm": E(0, "torch.mm({x}, {m})", SIX),
    "bmm": E(T, "torch.bmm({x} * 0.3, {x}.sigmoid().mT)"),
    "einsum": E(2, "torch.einsum('nchw,co->nohw', {x}, {m})", SIX),
    "embedding": E(T, "{x} + {m}(torch.arange({n}) % 5)", "nn.Embedding(5, {c})"),
    "addmm": E(0, "torch.addmm({m}[1], {x}, {m}[0])",
               "nn.ParameterList([nn.Parameter(torch.ones({c}, 6)), nn.Parameter(torch.ones(6))])"),
}  # fmt: skip

RECURRENT = {
    "fxcompress.lstm": E(T, "{m}({x})[0]", "nn.LSTM({c}, 6, 2, batch_first=True)"),
    "fxcompress.gru": E(T, "{m}({x})[0]", "nn.GRU({c}, 5, bidirectional=True, batch_first=True)"),
    "fxcompress.rnn_tanh": E(T, "{m}({x})[0]", "nn.RNN({c}, 6, batch_first=True)"),
    "fxcompress.rnn_relu": E(T, "{m}({x})[0]", "nn.RNN({c}, 6, nonlinearity='relu', batch_first=True)"),
    "lstm_cell": E(0, "{m}({x})[0]", "nn.LSTMCell({c}, 6)"),
    "gru_cell": E(0, "{m}({x})", "nn.GRUCell({c}, 6)"),
    "rnn_tanh_cell": E(0, "{m}({x})", "nn.RNNCell({c}, 6)"),
    "rnn_relu_cell": E(0, "{m}({x})", "nn.RNNCell({c}, 6, nonlinearity='relu')"),
}

NORMALIZATION = {
    "batch_norm": E(2, "{m}({x})", "nn.BatchNorm2d({c})"),
    "fxcompress.batch_norm": E(
        2,
        "{m}({x})",
        "type('Norm', (nn.BatchNorm2d,), {{'forward': lambda self, x: ("
        "self.num_batches_tracked.add_(1) if self.training else None, F.batch_norm(x * 0.9, "
        "self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, "
        "self.eps))[1]}})({c})",
    ),
    "instance_norm": E(2, "{m}({x})", "nn.InstanceNorm2d({c}, affine=True, eps=0.1)"),
    "layer_norm": E(T, "{m}({x})", "nn.LayerNorm({c}, eps=1e-3)"),
    "rms_norm": E(T, "{m}({x})", "nn.RMSNorm({c}, eps=1e-3)"),
    "group_norm": E(1, "F.group_norm({m}({x}), 2, eps=1e-2)", "nn.Conv1d({c}, 6, 1)"),
    "_weight_norm": E(T, "F.linear({x}, torch._weight_norm({m}, {m}[:, :1].abs() + 1.0, 0))",
                      "nn.Parameter(torch.ones(6, {c}))"),
}  # fmt: skip

POOLING = {
    "max_pool1d": E(1, "F.max_pool1d({x}, 2, padding=1)"),
    "max_pool2d": E(2, "F.max_pool2d({x}, 2, padding=1)"),
    "max_pool3d": E(3, "F.max_pool3d({x}, 2, padding=1)"),
    "max_pool1d_with_indices": E(1, "F.max_pool1d({x}, 2, return_indices=True)[0]"),
    "max_pool2d_with_indices": E(2, "F.max_pool2d({x}, 2, return_indices=True)[0]"),
    "max_pool3d_with_indices": E(3, "F.max_pool3d({x}, 2, return_indices=True)[0]"),
    "avg_pool1d": E(1, "F.avg_pool1d({x}, 2, padding=1)"),
    "avg_pool2d": E(2, "F.avg_pool2d({x}, 3, padding=1)"),
    "avg_pool3d": E(3, "F.avg_pool3d({x}, 2, padding=1, count_include_pad=False)"),
    "adaptive_avg_pool1d": E(1, "F.adaptive_avg_pool1d({x}, 2)"),
    "adaptive_avg_pool2d": E(2, "F.adaptive_avg_pool2d({x}, 2)"),
    "adaptive_avg_pool3d": E(3, "F.adaptive_avg_pool3d({x}, 2)"),
    "adaptive_max_pool1d": E(1, "F.adaptive_max_pool1d({x}, 3)"),
    "adaptive_max_pool2d": E(2, "F.adaptive_max_pool2d({x}, 3)"),
    "adaptive_max_pool3d": E(3, "F.adaptive_max_pool3d({x}, 2)"),
    "upsample_nearest1d": E(1, "F.interpolate({x}, scale_factor=2.0)"),
    "upsample_nearest2d": E(2, "F.interpolate({x}, size=(7, 9))"),
    "upsample_nearest3d": E(3, "F.interpolate({x}, size=(4, 5, 3))"),
    "_upsample_nearest_exact1d": E(1, "F.interpolate({x}, size=9, mode='nearest-exact')"),
    "_upsample_nearest_exact2d": E(2, "F.interpolate({x}, size=7, mode='nearest-exact')"),
    "_upsample_nearest_exact3d": E(3, "F.interpolate({x}, size=4, mode='nearest-exact')"),
    "upsample_linear1d": E(1, "F.interpolate({x}, size=9, mode='linear')"),
    "upsample_bilinear2d": E(2, "F.interpolate({x}, size=7, mode='bilinear', align_corners=True)"),
    "upsample_trilinear3d": E(3, "F.interpolate({x}, size=4, mode='trilinear')"),
    "upsample_bicubic2d": E(2, "F.interpolate({x}, size=7, mode='bicubic')"),
    "_upsample_bilinear2d_aa": E(2, "F.interpolate({x}, size=3, mode='bilinear', antialias=True)"),
    "_upsample_bicubic2d_aa": E(2, "F.interpolate({x}, size=3, mode='bicubic', antialias=True)"),
    "pad": E(2, "F.pad({x}, (1, 0, 2, 1), value=0.7)"),
    "constant_pad_nd": E(2, "torch.constant_pad_nd({x}, (1, 0, 0, 0, 1, 2), 0.3)"),
    "pixel_shuffle": E(2, "F.pixel_shuffle({m}({x}), 2)", CONV),
    "pixel_unshuffle": E(2, "F.pixel_unshuffle(F.pad({x}, (0, {n} % 2, 0, {x}.shape[2] % 2)), 2)"),
    "channel_shuffle": E(2, "F.channel_shuffle({m}({x}), 2)", CONV),
    "native_channel_shuffle": E(
        2, "{m}({x}) * torch.native_channel_shuffle({m}.weight.mean(1)[None], 4)", CONV
    ),
    "im2col": E(2, "F.unfold({x}, 2)"),
    "col2im": E(2, "F.fold(F.unfold({x}, 3, padding=1), {x}.shape[2:], 3, padding=1) * 0.3"),
    "grid_sampler": E(
        2,
        "F.grid_sample({x}, torch.zeros(1, 2, 2, 2, dtype={x}.dtype).expand({x}.shape[0], -1, -1, -1) + 0.1)",
    ),
}

JOINING = {
    "cat": E(None, "torch.cat([{x}, {x}.sigmoid()], 1)"),
    "concat": E(None, "torch.concat([{x}, {x}.sigmoid()], 1)"),
    "concatenate": E(T, "torch.concatenate([{x}.sigmoid(), {x}], -1)"),
    "stack": E(T, "torch.stack([{x}, {x} * 2.0], 2).flatten(1, 2)"),
    "split": E(T, "torch.cat(torch.split({x}, 3, -1)[::-1], -1)"),
    "split_with_sizes": E(T, "torch.cat(torch.split({x}, [2, {c} - 2], -1)[::-1], -1)"),
    "split_copy": E(T, "torch.cat(torch.split_copy({x}, 3, -1)[::-1], -1)"),
    "chunk": E(T, "torch.cat([a * b for a, b in zip({x}.chunk(2, -1), {m}.chunk(2))][::-1], -1)", VECTOR),
    "unsafe_split": E(T, "torch.cat(torch.unsafe_split({x}, 4, -1)[::-1], -1)"),
    "unsafe_chunk": E(T, "torch.cat(torch.unsafe_chunk({x}, 3, -1)[::-1], -1)"),
    "tensor_split": E(T, "torch.cat(torch.tensor_split({x}, 3, -1)[::-1], -1)"),
    "unbind": E(T, "torch.cat({x}.unbind(1)[:2], -1)"),
    "getitem": E(T, "{x}.chunk(2, 1)[1]"),
}

INDEXING = {
    "slice": E(T, "{x}[:, :, 1:6:2]"),
    "narrow": E(T, "{x}.narrow(2, 1, {c} - 1)"),
    "index_select": E(T, "{x}.index_select(-1, torch.tensor([0, 2, 2, 1]))"),
    "flip": E(None, "{x}.flip(1)"),
    "fliplr": E(None, "torch.fliplr({x})"),
    "flipud": E(None, "torch.flipud({x}.transpose(0, 1)).transpose(0, 1)"),
    "roll": E(None, "{x}.roll(3, 1)"),
    "select": E(T, "{x}[:, 1]"),
    "index": E(T, "{x}[:, torch.tensor([2, 0, 0])]"),
}

RESHAPING = {
    "reshape": E(T, "{x}.reshape({x}.shape[0], -1)"),
    "flatten": E(T, "{x}.flatten(1)"),
    "unflatten": E(2, "{m}({x}).unflatten(1, (4, 2)).flatten(2, 3)", CONV),
    "squeeze": E(T, "{x}.mean(1, keepdim=True).squeeze(1)"),
    "unsqueeze": E(T, "{x}.mean(1).unsqueeze(1) * {x}"),
    "view_as": E(T, "{x}.flatten(1).sigmoid().view_as({x})"),
    "reshape_as": E(T, "{x}.flatten(1).sigmoid().reshape_as({x})"),
    "permute": E(2, "{x}.permute(0, 1, 3, 2)"),
    "transpose": E(T, "{x}.transpose(1, 2)"),
    "t": E(0, "{x}.t().sigmoid().t()"),
    "movedim": E(T, "{x}.movedim(1, 2)"),
    "moveaxis": E(2, "torch.moveaxis({x}, 1, -1)"),
    "swapaxes": E(T, "torch.swapaxes({x}, 1, 2)"),
    "swapdims": E(2, "torch.swapdims({x}, 2, 3)"),
    "numpy_T": E(0, "{x}.T.sigmoid().T"),
    "mT": E(T, "{x}.mT"),
    "expand": E(T, "{x}.mean(1, keepdim=True).expand(-1, {n}, -1) * {x}"),
    "expand_as": E(T, "{x}.mean(1, keepdim=True).expand_as({x}) - {x}"),
    "broadcast_to": E(T, "torch.broadcast_to({x}[..., :1], {x}.shape) * {x}"),
    "repeat": E(T, "{x}.repeat(1, 1, 2)"),
    "tile": E(None, "torch.tile({x}, (1, 2, *[1] * ({x}.dim() - 2)))"),
    "repeat_interleave": E(T, "{x}.repeat_interleave(2, -1)"),
}

REDUCTION = {
    "mean": E(2, "{x}.mean((2, 3))"),
    "amax": E(2, "{x}.amax((2, 3))"),
    "amin": E(2, "{x}.amin(2)"),
    "median": E(T, "{x}.median(1)[0]"),
    "max": E(T, "{x}.max(1, keepdim=True)[0] - {x}"),
    "min": E(2, "{x}.min(2)[0]"),
    "linalg_vector_norm": E(T, "torch.linalg.vector_norm({x}, 2, (1,), keepdim=True) + {x}"),
    "var": E(2, "{x}.var((2, 3))"),
    "std": E(2, "{x}.std((2, 3), correction=0)"),
    "any": E(T, "{x} * ({x} > 0.9137).any(1, keepdim=True)"),
    "all": E(T, "{x} * ({x} > -0.9137).all(1, keepdim=True)"),
    "prod": E(T, "{x} + {x}.tanh().prod(1, keepdim=True)"),
    "nansum": E(T, "{x}.nansum(1) * 0.3"),
    "count_nonzero": E(2, "{x} + {x}.relu().count_nonzero((2, 3))[..., None, None] * 0.1"),
    "argmax": E(T, "{x} * ({x}.argmax(1, keepdim=True) + 0.5) * 0.2"),
    "argmin": E(T, "{x} * ({x}.argmin(-1, keepdim=True) + 0.5) * 0.2"),
    "logsumexp": E(T, "{x} - {x}.logsumexp(-1, keepdim=True)"),
    "var_mean": E(T, "{x} * sum(torch.var_mean({x}, 1, keepdim=True)) * 0.3"),
    "std_mean": E(2, "{x} * sum(torch.std_mean({x}, (2, 3), keepdim=True)) * 0.3"),
    "aminmax": E(2, "sum(torch.aminmax({x}, dim=2))"),
    "mode": E(T, "{x}.mode(1)[0]"),
    "sum": E(T, "{x}.sum(1) * 0.3"),
    "nanmedian": E(T, "{x}.nanmedian(1)[0]"),
    "max.other": E(T, "torch.max({x}, {x} * 0.5 - 0.1)"),
    "min.other": E(T, "torch.min({x}, {x} * 0.5 + 0.1)"),
    "kthvalue": E(T, "{x}.kthvalue(2, 1)[0]"),
    "quantile.scalar": E(T, "{x}.quantile(0.3, 1)"),
    "softmax": E(T, "{x} * {x}.softmax(1)"),
    "log_softmax": E(T, "{x}.log_softmax(-1)"),
    "_softmax": E(T, "torch._softmax({x}, 1, False)"),
    "cumsum": E(T, "{x}.cumsum(1) * 0.3"),
    "cumprod": E(T, "{x}.tanh().cumprod(1)"),
    "cummax": E(T, "{x}.cummax(1)[0]"),
    "cummin": E(T, "{x}.cummin(1)[0]"),
    "topk": E(T, "{x}.topk(2, 1)[0]"),
    "msort": E(T, "torch.msort({x}.transpose(0, 1)).transpose(0, 1)"),
    "diff": E(T, "torch.diff({x}, dim=1, prepend={x}[:, 1:2])"),
    "argsort": E(T, "{x} + {x}.argsort(1) * 0.1"),
    "logcumsumexp": E(T, "{x}.logcumsumexp(1)"),
    "sort": E(T, "{x}.sort(1)[0]"),
}

CREATION = {
    "zeros": E(1, "torch.cat([{x}, torch.zeros({x}.shape[0], 2, {x}.shape[2], dtype={x}.dtype)], 1)"),
    "ones": E(2, "{x} * torch.ones(1, {c}, 1, 1, dtype={x}.dtype)"),
    "full": E(2, "{x} + torch.full(({c}, 1, 1), 0.3, dtype={x}.dtype)"),
    "empty": E(2, "{x} + torch.empty({c}, 1, 1, dtype={x}.dtype).fill_(0.25)"),
    "new_zeros": E(1, "torch.cat([{x}, {x}.new_zeros({x}.shape[0], 2, {x}.shape[2])], 1)"),
    "new_ones": E(2, "{x} * {x}.new_ones({c}, 1, 1)"),
    "new_full": E(2, "{x} + {x}.new_full((1, {c}, 1, 1), 0.4)"),
    "new_empty": E(2, "{x} + {x}.new_empty(({c}, 1, 1)).fill_(0.25)"),
    "fill": E(None, "torch.cat([{x}, torch.fill({x}, 0.3)], 1)"),
    "zero": E(None, "torch.cat([{x}.clone().zero_(), {x}], 1)"),
    "empty_like": E(None, "{x} + torch.empty_like({x}).fill_(0.25)"),
    "arange": E(T, "{x} * torch.arange({c}, dtype={x}.dtype) * 0.2"),
    "linspace": E(T, "{x} + torch.linspace(0.0, 1.0, {c}, dtype={x}.dtype)"),
    "scalar_tensor": E(T, "{x} * torch.scalar_tensor(0.3, dtype={x}.dtype)"),
    "eye": E(T, "{x} @ torch.eye({c}, dtype={x}.dtype)"),
    "tril_indices": E(T, "{x} + torch.tril_indices(2, 4)[0, 1].to({x}.dtype)"),
    "triu_indices": E(T, "{x} + torch.triu_indices(2, 4)[1, 2].to({x}.dtype)"),
    "sym_size": E(T, "{x} / {x}.shape[0]"),
    "item": E(T, "{x} * torch.tensor([1, 2]).sum().item() * 0.3"),
    "rand": E(T, noise("torch.rand({c}, dtype={x}.dtype)")),
    "randn": E(T, noise("torch.randn({c}, dtype={x}.dtype)")),
    "randint": E(T, noise("torch.randint(3, ({c},))")),
    "randperm": E(T, noise("torch.randperm({c})")),
    "rand_like": E(T, noise("torch.rand_like({x})")),
    "randn_like": E(T, noise("torch.randn_like({x})")),
    "randint_like": E(T, noise("torch.randint_like({x}, 3)")),
    "bernoulli": E(T, noise("torch.bernoulli({x}.sigmoid())")),
    "exponential": E(T, noise("torch.empty_like({x}).exponential_()")),
    "normal_functional": E(T, noise("torch.empty_like({x}).normal_()")),
    "uniform": E(T, noise("torch.empty_like({x}).uniform_()")),
    "multinomial": E(0, noise("torch.multinomial({x}.sigmoid(), {c})")),
    "one_hot": E(T, "({x}[..., None] * F.one_hot(({x} > 0.1317).long(), 3)).flatten(2)"),
    "meshgrid": E(T, "{x} + torch.stack(torch.meshgrid({x}[0, :, 0], {x}[0, 1], indexing='ij')).sum(0)"),
}

ADDRESSING = {
    "gather": E(2, "{x}.gather(3, " + PICKED + ")"),
    "scatter": E(2, "{x}.scatter(3, ({x}[..., :1] > 0.1317).long() + {n} - 2, {x} * 2.0)"),
    "scatter_add": E(2, "{x}.scatter_add(3, " + PICKED + ", {x} * 2.0)"),
    "scatter_reduce": E(2, "{x}.scatter_reduce(3, " + PICKED + ", {x} * 2.0, 'amax')"),
    "index_add": E(T, "{x}.index_add(1, torch.tensor([0, 2]), {x}[:, :2])"),
    "index_copy": E(T, "{x}.index_copy(1, torch.tensor([0, 2]), {x}[:, :2] * 2.0)"),
    "index_fill": E(T, "{x}.index_fill(1, torch.tensor([0, 2]), 0.0)"),
    "index_reduce": E(T, "{x}.index_reduce(1, torch.tensor([0, 2]), {x}[:, :2], 'prod')"),
    "index_put": E(T, "{x}.index_put((torch.tensor(0), torch.tensor(1)), {x}[0, 0] * 2.0)"),
    "embedding_bag": E(0, "{x} * {m}(({x}[:, :3] > 0).long())", "nn.EmbeddingBag(5, {c})"),
    "unfold": E(2, "{x}.unfold(2, 2, 1).mean(-1)"),
    "searchsorted": E(T, "{x} + torch.searchsorted(" + TABLE + ", {x}) * 0.1"),
    "bucketize": E(T, "{x} + torch.bucketize({x}, " + TABLE + ", right=True) * 0.1"),
    "isin": E(T, "{x} * torch.isin(({x} > 0.1317).long(), torch.tensor([1, 3]))"),
    "slice_scatter": E(T, "torch.slice_scatter({x}, {x}[:, :1] * 2.0, 1, 0, 2, 2)"),
    "select_scatter": E(T, "torch.select_scatter({x}, {x}[0] * 2.0, 0, 1)"),
    "take": E(T, "{x} * torch.take({x}, torch.tensor([3]))"),
    "masked_select": E(T, "{x} + {x}.masked_select({x} > 0.5137).sum() * 0.01"),
    "masked_scatter": E(T, "{x}.masked_scatter({x} > 0.5137, {x}.sigmoid())"),
    "nonzero": E(T, "{x} + ({x} > 0.5137).nonzero().sum() * 0.001"),
    "bincount": E(T, "{x} + torch.bincount(({x} > 0.3137).flatten().long(), minlength=2)[0] * 0.01"),
    "histc": E(T, "{x} + torch.histc({x}, 3, -1.0, 1.0)[1] * 0.01"),
    "cartesian_prod": E(T, "{x} + torch.cartesian_prod({x}[0, :, 0], {x}[0, 0])[0, 0]"),
}

PRODUCTS = {
    "dot": E(T, "{x} * torch.dot({x}.mean((0, 1)), {x}.mean((0, 1)).exp()).tanh()"),
    "vdot": E(T, "{x} * torch.vdot({x}.mean((0, 1)), {x}.mean((0, 1)).exp()).tanh()"),
    "mv": E(0, "torch.mv({x}, {m})[:, None].tanh() * {x}", VECTOR),
    "outer": E(T, "{x} + torch.outer({x}.mean((0, 2)), {x}.mean((0, 1)))"),
    "inner": E(T, "torch.inner({x}, {m})", "nn.Parameter(torch.ones(6, {c}))"),
    "linalg_vecdot": E(T, "{x} * torch.linalg.vecdot({x}, {x}.sigmoid(), dim=-1)[..., None] * 0.2"),
    "tensordot": E(T, "torch.tensordot({x}, {m}, dims=([2], [0]))", SIX),
    "linalg_multi_dot": E(T, "{x} @ torch.linalg.multi_dot([{m}[0], {m}[1], {m}[0].mT])", LOW_RANK),
    "chain_matmul": E(T, "{x} @ torch.chain_matmul({m}[0], {m}[1], {m}[0].mT)", LOW_RANK),
    "baddbmm": E(T, "torch.baddbmm({x}, {x}, {m}.expand({x}.shape[0], -1, -1), alpha=0.5)", SQUARE),
    "addbmm": E(T, "{x} + torch.addbmm({m}, {x}.mT, {x}).mean(0).tanh()", SQUARE),
    "addmv": E(0, "torch.addmv({x}.sum(1), {x}, {m})[:, None].tanh() * {x}", VECTOR),
    "addr": E(0, "torch.addr({x}, {x}.mean(1), {m})", VECTOR),
    "bilinear": E(T, "{m}({x}, {x}.sigmoid())", "nn.Bilinear({c}, {c}, 6)"),
    "cosine_similarity": E(2, "{x} * F.cosine_similarity({x}, {x}.relu() * 2.0 + 0.3, 1)[:, None]"),
    "cdist": E(T, "torch.cdist({x}, {x}.relu() * 0.5 + 1.0) * 0.3"),
    "pairwise_distance": E(T, "{x} + F.pairwise_distance({x}, {x}.sigmoid() * 0.5)[..., None] * 0.3"),
    "linalg_cross": E(T, "torch.linalg.cross({x}[:, :3], {x}[:, 1:4] * 2.0, dim=1)"),
    "cross": E(T, "torch.cross({x}[:, :3], {x}[:, 1:4] * 2.0, 1)"),
    "kron": E(T, "{x} @ torch.kron({m}, torch.ones(1, 2, dtype={x}.dtype))", SIX),
    "scaled_dot_product_attention": E(T, "F.scaled_dot_product_attention({x}, {x} * 0.5, {x} + 1.0)"),
}  # fmt: skip

FOURIER = {
    "fft_fft": E(T, both("torch.fft.fft({x}, dim=1)")),
    "fft_ifft": E(T, both("torch.fft.ifft({x}, n=7)")),
    "fft_rfft": E(2, both("torch.fft.rfft({x}, norm='ortho')")),
    "fft_irfft": E(2, "torch.fft.irfft(torch.fft.rfft({x}), n={x}.shape[-1])"),
    "fft_hfft": E(2, "torch.fft.hfft({x}) * 0.2"),
    "fft_ihfft": E(2, both("torch.fft.ihfft({x})")),
    "fft_fft2": E(2, "torch.fft.fft2({x}).abs() * 0.2"),
    "fft_ifft2": E(2, both("torch.fft.ifft2({x})")),
    "fft_rfft2": E(2, both("torch.fft.rfft2({x})")),
    "fft_irfft2": E(2, "torch.fft.irfft2(torch.fft.rfft2({x}) * 0.5)"),
    "fft_hfft2": E(2, "torch.fft.hfft2({x}) * 0.1"),
    "fft_ihfft2": E(2, both("torch.fft.ihfft2({x})")),
    "fft_fftn": E(2, both("torch.fft.fftn({x}, dim=(2, 3))")),
    "fft_ifftn": E(2, both("torch.fft.ifftn({x}, dim=(3, 2))")),
    "fft_rfftn": E(2, both("torch.fft.rfftn({x}, s=(5, 4), dim=(2, 3))")),
    "fft_irfftn": E(2, "torch.fft.irfftn(torch.fft.rfftn({x}, dim=(2, 3)), dim=(2, 3))"),
    "fft_hfftn": E(2, "torch.fft.hfftn({x}, dim=(2, 3)) * 0.1"),
    "fft_ihfftn": E(2, both("torch.fft.ihfftn({x}, dim=(2, 3))")),
    "fft_fftshift": E(2, "torch.fft.fftshift({x}, dim=(2, 3))"),
    "fft_ifftshift": E(2, "torch.fft.ifftshift({x}, dim=2)"),
    "real": E(T, "torch.fft.fft({x}).real * 0.2"),
    "imag": E(T, "torch.fft.fft({x}).imag * 0.2"),
    "complex": E(T, "torch.complex({x}, {x}.relu() + 0.5).abs()"),
    "polar": E(T, both("torch.polar({x}.abs(), {x})")),
    "_conj": E(T, both("torch.fft.fft({x}) * torch.fft.fft({x}.relu()).conj() * 0.2")),
    "resolve_conj": E(T, both("torch.fft.fft({x}).conj().resolve_conj()")),
    "resolve_neg": E(T, "{x}.resolve_neg() * 2.0"),
    "view_as_real": E(T, "torch.view_as_real(torch.fft.fft({x})).flatten(2) * 0.2"),
    "view_as_complex": E(1, "torch.view_as_complex(torch.stack([{x}, {x}.relu() + 0.5], -1)).abs()"),
}

DIAGONALS = {
    "tril": E(T, "{x}.tril()"),
    "triu": E(T, "{x}.triu(1)"),
    "diagonal": E(T, "{x}.diagonal(1, 1, 2)"),
    "diag_embed": E(1, "torch.diag_embed({x}, 1)"),
    "trace": E(0, "{x} * torch.trace({x}).tanh()"),
    "diag": E(0, "{x} * torch.diag({x}).sum().tanh()"),
}

EXPRESSIONS = (
    POINTWISE | CONVOLUTION | LINEAR | RECURRENT | NORMALIZATION | POOLING | JOINING | INDEXING | RESHAPING
    | REDUCTION | CREATION | ADDRESSING | PRODUCTS | FOURIER | DIAGONALS
)  # fmt: skip

STATISTICS = {
    "fxcompress.mean": "{h} - {h}.mean({d}, keepdim=True)",
    "fxcompress.var": "{h} / ({h}.var({d}, keepdim=True) + 0.1).sqrt()",
    "fxcompress.std": "{h} / ({h}.std({d}, keepdim=True) + 0.5)",
    "fxcompress.amax": "{h} - {h}.amax({d}, keepdim=True)",
    "fxcompress.amin": "{h} * {h}.amin({d}, keepdim=True)",
    "fxcompress.softmax": "{h} * {h}.softmax({d})",
    "fxcompress.standardize": "F.batch_norm({h}.movedim({d}, -1), None, None, training=True, eps=0.1)"
    ".movedim(-1, {d})",
    "fxcompress.layer_norm": "F.layer_norm({h}.movedim({d}, -1), (8,), eps=0.1).movedim(-1, {d})",
    "fxcompress.rms_norm": "F.rms_norm({h}.movedim({d}, -1), (8,), eps=0.1).movedim(-1, {d})",
    "fxcompress.group_norm": "F.group_norm({h}.movedim({d}, 1), 2, eps=0.1).movedim(1, {d})",
}
"""Over the channels (axis `{d}`) `{h}` of a layer: what a dependency-aware mask on it makes of the operator
counts the kept ones only."""


def as_rank(draft: Draft, x: Value, rank: int) -> Value:
    """The map `x` with `rank` spatial axes: the last ones joined, or further ones with a learned scale."""
    if rank == 0 < x.rank:
        return draft.emit(f"{x}.mean({tuple(range(2, x.rank + 2))})")
    if rank < x.rank:
        return draft.emit(f"{x}.flatten({rank + 1})")
    if rank > x.rank:
        more = rank - x.rank
        return draft.emit(f"{x}[(..., *[None] * {more})] * {draft.parameter(*[max(2, 4 - more)] * more)}")
    return x


def chosen(draft: Draft, reads: tuple[int | str | None, ...]) -> Expression:
    """One of the expressions that read one of `reads`."""
    fitting = [expression for expression in EXPRESSIONS.values() if expression.reads in reads]
    index = draft.pick(range(KNOBS)) * KNOBS + draft.pick(range(KNOBS))  # a knob alone reaches 120 of them
    return fitting[index % len(fitting)]


@step(weight=36)
def map_operator(draft: Draft, x: Value) -> Value:
    """Any operator that works on maps."""
    expression = chosen(draft, (None, 0, 1, 2, 3))
    return expression.emit(draft, x if expression.reads is None else as_rank(draft, x, int(expression.reads)))


@step(weight=24, reads=TOKENS)
def token_operator(draft: Draft, x: Value) -> Value:
    """Any operator that works on tokens."""
    return chosen(draft, (TOKENS,)).emit(draft, x)


@step(weight=6, reads=ANY)
def statistics(draft: Draft, x: Value) -> Value:
    """Statistics over the channels of a layer, read by another layer."""
    code = STATISTICS[draft.pick(tuple(STATISTICS))]
    kind, width = ("Linear", x.features) if x.tokens else (f"Conv{x.rank}d", x.channels)
    kind, kernel = (kind, ", 1") if not x.tokens and x.rank else ("Linear", "")
    first, last = draft.module(f"nn.{kind}({width}, 8{kernel})"), draft.module(f"nn.{kind}(8, 6{kernel})")
    h = draft.local(f"{first}({x})")
    return draft.emit(f"{last}({code.format(h=h, d=-1 if x.tokens else 1)})")
