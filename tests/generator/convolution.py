"""Convolutions of every kind: strided, dilated, padded in all modes, grouped, depthwise, transposed."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step

CHANNELS = (4, 6, 8, 3, 2, 5, 12, 9)


def _padding(draft: Draft, kernel: int, rank: int) -> str:
    """Arguments for the padding: amount or 'same', and the mode."""
    amount = draft.pick((kernel // 2, 0, kernel // 2, "same", kernel // 2 + 1, "uneven"))
    if amount == "uneven":
        amount = f"({', '.join(str((kernel // 2 + i) % 3) for i in range(rank))},)"
    mode = draft.pick(("zeros", "zeros", "zeros", "reflect", "replicate", "circular", "zeros", "zeros"))
    return f"padding={amount!r}" + (f", padding_mode={mode!r}" if mode != "zeros" else "")


def _bias(draft: Draft) -> str:
    return draft.pick(("", "", ", bias=False"))


def remember(draft: Draft, name: str, value: Value) -> str:
    """Note `name` as a layer that later steps may call again on values like `value`."""
    draft.layers.append((name, value.rank, value.channels))
    return name


@step(weight=18)
def conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    kernel = draft.pick((3, 1, 3, 2, 5))
    code = f"nn.Conv{x.rank}d({x.channels}, {draft.pick(CHANNELS)}, {kernel}"
    padding = _padding(draft, kernel, x.rank)
    if "same" not in padding:
        code += draft.pick(("", "", "", ", stride=2"))
    code += draft.pick(("", "", "", ", dilation=2"))
    return draft.emit(f"{remember(draft, draft.module(f'{code}, {padding}{_bias(draft)})'), x)}({x})")


@step(weight=6)
def pointwise_conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    layer = draft.module(f"nn.Conv{x.rank}d({x.channels}, {draft.pick(CHANNELS)}, 1{_bias(draft)})")
    return draft.emit(f"{remember(draft, layer, x)}({x})")


@step(weight=6)
def grouped_conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    groups = draft.divisor(x.channels, above=1)
    out = groups * draft.pick((1, 2, 3))
    require(out <= 18)
    options = f"groups={groups}, {_padding(draft, 3, x.rank)}{_bias(draft)}"
    layer = draft.module(f"nn.Conv{x.rank}d({x.channels}, {out}, 3, {options})")
    return draft.emit(f"{remember(draft, layer, x)}({x})")


@step(weight=6)
def depthwise_conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    out = x.channels * draft.pick((1, 1, 2))
    kernel = draft.pick((3, 1, 2))
    code = f"nn.Conv{x.rank}d({x.channels}, {out}, {kernel}, groups={x.channels}"
    layer = draft.module(f"{code}, {_padding(draft, kernel, x.rank)}{_bias(draft)})")
    return draft.emit(f"{remember(draft, layer, x)}({x})")


@step(weight=3)
def transposed_conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    stride = draft.pick((1, 2))
    code = f"nn.ConvTranspose{x.rank}d({x.channels}, {draft.pick(CHANNELS)}, {draft.pick((3, 2, 1))}"
    code += f", stride={stride}, padding={draft.pick((0, 1))}"
    if stride == 2:
        code += f", output_padding={draft.pick((0, 1))}"
    layer = draft.module(f"{code}{draft.pick(('', '', ', dilation=2'))}{_bias(draft)})")
    return draft.emit(f"{remember(draft, layer, x)}({x})")


@step(weight=2)
def grouped_transposed_conv(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    groups = draft.divisor(x.channels, above=1)
    out = groups * draft.pick((1, 2, 3))
    require(out <= 18)
    code = f"nn.ConvTranspose{x.rank}d({x.channels}, {out}, 2, stride={draft.pick((1, 2))}"
    layer = draft.module(f"{code}, groups={groups}{_bias(draft)})")
    return draft.emit(f"{remember(draft, layer, x)}({x})")


@step(weight=1)
def functional_conv(draft: Draft, x: Value) -> Value:
    """A convolution whose weight is a parameter of the model itself, not of a layer."""
    require(1 <= x.rank <= 3)
    out = draft.pick(CHANNELS)
    weight = draft.parameter(out, x.channels, *[3] * x.rank)
    bias = draft.pick(("", f", {draft.parameter(out)}"))
    return draft.emit(f"F.conv{x.rank}d({x}, {weight}{bias}, padding={draft.pick((1, 0))})")


@step(weight=1)
def channels_as_kernels(draft: Draft, x: Value) -> Value:
    """A convolution over the whole space, as a classifier or a squeeze is sometimes written."""
    require(x.rank in (1, 2))
    draft.flags.add("fixed size")
    size = x.space if x.rank == 2 else x.space[0]
    return draft.emit(
        f"{draft.module(f'nn.Conv{x.rank}d({x.channels}, {draft.pick(CHANNELS)}, {size})')}({x})"
    )
