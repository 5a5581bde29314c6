"""Layers whose weight is computed: weight norm, weight standardization, hypernetworks, mixed kernels."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, TOKENS, require, step

CHANNELS = (4, 6, 8, 5)


@step(weight=2)
def standardized_convolution(draft: Draft, x: Value) -> Value:
    """Weight standardization (BiT, NFNet): each filter less its mean, over its deviation, times a gain."""
    require(1 <= x.rank <= 2)
    out = draft.pick(CHANNELS)
    layer = draft.module(f"nn.Conv{x.rank}d({x.channels}, {out}, 3, padding=1)")
    axes = tuple(range(1, x.rank + 2))
    if draft.pick((True, False)):
        centered = draft.local(f"{layer}.weight - {layer}.weight.mean({axes}, keepdim=True)")
        weight = draft.local(f"{centered} / ({centered}.square().mean({axes}, keepdim=True) + 1e-2).sqrt()")
    else:  # timm's StdConv2d
        flat = f"{layer}.weight.reshape(1, {out}, -1)"
        weight = draft.local(f"F.batch_norm({flat}, None, None, training=True, momentum=0.0, eps=1e-2)"
                             f".reshape_as({layer}.weight)")  # fmt: skip
    if draft.pick((False, True)):
        weight = f"{weight} * {draft.parameter(out, *[1] * (x.rank + 1))}"
    return draft.emit(f"F.conv{x.rank}d({x}, {weight}, {layer}.bias, padding={draft.pick((1, 0))})")


@step(weight=2)
def weight_norm_convolution(draft: Draft, x: Value) -> Value:
    """torch's weight_norm parametrization, or g · v / |v| by hand."""
    require(1 <= x.rank <= 2)
    out = draft.pick(CHANNELS)
    code = f"nn.Conv{x.rank}d({x.channels}, {out}, 3, padding=1)"
    form = draft.pick(("parametrization", "hand"))
    if form == "parametrization":
        return draft.emit(f"{draft.attribute('conv', f'nn.utils.parametrizations.weight_norm({code})')}({x})")
    ones = [1] * (x.rank + 1)
    weight, gain = draft.parameter(out, x.channels, *[3] * x.rank), draft.parameter(out, *ones)
    length = f"{weight}.flatten(1).norm(dim=1).view(-1, {', '.join(map(str, ones))})"
    return draft.emit(f"F.conv{x.rank}d({x}, {gain} * {weight} / {length}, padding=1)")


@step(weight=1)
def scaled_weight(draft: Draft, x: Value) -> Value:
    """A layer's weight times a constant or a learned gain per filter (StyleGAN's equalized rate)."""
    require(x.rank in (0, 2))
    out = draft.pick(CHANNELS)
    code = f"nn.Conv2d({x.channels}, {out}, 3)" if x.rank else f"nn.Linear({x.channels}, {out})"
    layer = draft.module(code)
    gain = draft.pick(
        ("0.7", draft.parameter(out, 1, *[1] * x.rank), draft.parameter(1, x.channels, *[1] * x.rank))
    )
    function = "conv2d" if x.rank else "linear"
    return draft.emit(f"F.{function}({x}, {layer}.weight * {gain}, {layer}.bias)")


@step(weight=1)
def mixed_kernels(draft: Draft, x: Value) -> Value:
    """Kernels of several experts added by learned weights (CondConv without the routing)."""
    require(x.rank == 2)
    out = draft.pick(CHANNELS)
    first, second = (draft.module(f"nn.Conv2d({x.channels}, {out}, 3, padding=1)") for _ in "ab")
    share = draft.parameter(2)
    mixed = f"{share}[0] * {first}.weight + {share}[1] * {second}.weight"
    return draft.emit(f"F.conv2d({x}, {mixed}, {first}.bias + {second}.bias, padding=1)")


@step(weight=1)
def dynamic_filter(draft: Draft, x: Value) -> Value:
    """A depthwise filter per sample made by a layer from the pooled input."""
    require(x.rank == 1 and x.space[0] >= 3)
    layer = draft.module(f"nn.Linear({x.channels}, {x.channels * 3})")
    kernel = draft.local(f"{layer}({x}.mean(-1)).view(-1, {x.channels}, 1, 3).softmax(-1)")
    return draft.emit(f"({x}.unfold(2, 3, 1) * {kernel}).sum(-1)")


@step(weight=1, reads=TOKENS)
def low_rank_linear(draft: Draft, x: Value) -> Value:
    """A Linear with a low-rank update of its weight (LoRA), added to the weight or to the output."""
    layer = draft.module(f"nn.Linear({x.features}, {draft.pick((8, 6))})")
    out = draft.shape(f"{layer}.weight")[0]
    down, up = draft.parameter(2, x.features), draft.parameter(out, 2)
    if draft.pick((True, False)):
        return draft.emit(f"{layer}({x}) + ({x} @ {down}.T) @ {up}.T * 0.5")
    return draft.emit(f"F.linear({x}, {layer}.weight + {up} @ {down} * 0.5, {layer}.bias)")


@step(weight=1, reads=ANY)
def expanded_parameter(draft: Draft, x: Value) -> Value:
    """A parameter worked on before it meets the value: softplus, softmax, sums of parameters."""
    size = x.features if x.tokens else x.channels
    tail = "" if x.tokens else ", 1" * x.rank
    first, second = draft.parameter(size), draft.parameter(size)
    options = (f"F.softplus({first})", f"({first} * {size}).softmax(0)", f"{first} + {second}.exp() * 0.2",
               f"torch.cat([{first}[:1], {second}[1:]])", f"{first} * {second}")  # fmt: skip
    view = "" if x.tokens else f".view(-1{tail})"
    return draft.emit(f"{x} {draft.pick(('*', '+'))} ({draft.pick(options)}){view}")
