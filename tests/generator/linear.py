"""Linear layers and matrix products: on vectors, channels-last, over space, einsum, Gram matrices."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step

WIDTHS = (6, 4, 8, 10, 5, 3, 12)


def to_last(x: Value) -> str:
    """`x` with its channels moved to the last axis, as source."""
    return f"{x}.permute(0, {', '.join(str(i) for i in range(2, x.rank + 2))}, 1)"


def from_last(name: object, rank: int) -> str:
    """The inverse of `to_last`, as source."""
    return f"{name}.permute(0, {rank + 1}, {', '.join(str(i) for i in range(1, rank + 1))})"


def linear_code(draft: Draft, features: int) -> str:
    return draft.module(f"nn.Linear({features}, {draft.pick(WIDTHS)}{draft.pick(('', '', ', bias=False'))})")


@step(weight=6)
def linear(draft: Draft, x: Value) -> Value:
    """On vectors; on anything larger the channels are moved last and back."""
    layer = linear_code(draft, x.channels)
    if x.rank == 0:
        draft.layers.append((layer, 0, x.channels))
        return draft.emit(f"{layer}({x})")
    draft.layers.append((layer, -1, x.channels))
    return draft.emit(from_last(f"{layer}({to_last(x)})", x.rank))


@step(weight=1)
def linear_over_space(draft: Draft, x: Value) -> Value:
    """A Linear over the last spatial axis, as token-mixing MLPs have."""
    require(x.rank >= 1)
    draft.flags.add("fixed size")
    return draft.emit(f"{linear_code(draft, x.space[-1])}({x})")


@step(weight=2)
def channels_last_mlp(draft: Draft, x: Value) -> Value:
    """Linear, activation, Linear on channels-last data, sometimes as a residual (ConvNeXt's tail)."""
    require(x.rank >= 1)
    hidden = draft.pick(WIDTHS)
    last = draft.emit(to_last(x))
    layer = draft.module(f"nn.Linear({x.channels}, {hidden})")
    inner = draft.emit(f"F.{draft.pick(('relu', 'gelu', 'silu', 'sigmoid'))}({layer}({last}))")
    out = draft.emit(f"{draft.module(f'nn.Linear({hidden}, {x.channels})')}({inner})")
    out = draft.emit(from_last(out, x.rank))
    return draft.emit(f"{x} + {out}") if draft.pick((True, False)) else out


@step(weight=1)
def parameter_product(draft: Draft, x: Value) -> Value:
    """A product with a free parameter instead of a layer."""
    weight = draft.parameter(x.channels, draft.pick(WIDTHS))
    if x.rank == 0:
        return draft.emit(
            draft.pick((f"{x} @ {weight}", f"torch.matmul({x}, {weight})", f"torch.mm({x}, {weight})"))
        )
    return draft.emit(from_last(f"({to_last(x)} @ {weight})", x.rank))


@step(weight=1)
def functional_linear(draft: Draft, x: Value) -> Value:
    require(x.rank == 0)
    out = draft.pick(WIDTHS)
    return draft.emit(f"F.linear({x}, {draft.parameter(out, x.channels)}, {draft.parameter(out)})")


@step(weight=1)
def einsum(draft: Draft, x: Value) -> Value:
    """Channel mixing written as an einsum."""
    require(1 <= x.rank <= 3)
    weight = draft.parameter(draft.pick(WIDTHS), x.channels)
    space = "hwd"[: x.rank]
    return draft.emit(f"torch.einsum('nc{space},oc->no{space}', {x}, {weight})")


@step(weight=1)
def gram(draft: Draft, x: Value) -> Value:
    """The Gram matrix of the channels, or attention over space; both read every channel."""
    require(x.rank >= 1)
    flat = draft.emit(f"{x}.flatten(2)")
    product = draft.pick(("{0} @ {0}.transpose(1, 2)", "torch.bmm({0}, {0}.transpose(1, 2))", "{0}.mT @ {0}"))
    return draft.emit(f"({product.format(flat)}) / 10.0")


@step(weight=1)
def spatial_attention(draft: Draft, x: Value) -> Value:
    """Non-local block: softmax(q kᵀ) v over positions with pointwise convolutions, added to its input."""
    require(x.rank == 2)
    inner = draft.pick((4, 2, 6))
    query, key = (
        draft.emit(f"{draft.module(f'nn.Conv2d({x.channels}, {inner}, 1)')}({x}).flatten(2)") for _ in "qk"
    )
    value = draft.emit(f"{draft.module(f'nn.Conv2d({x.channels}, {x.channels}, 1)')}({x}).flatten(2)")
    weights = draft.emit(f"({query}.transpose(1, 2) @ {key}).softmax(-1)")
    return draft.emit(f"{x} + ({value} @ {weights}.transpose(1, 2)).view({x}.shape)")


@step(weight=1)
def bilinear(draft: Draft, x: Value) -> Value:
    require(x.rank == 0)
    other = draft.pick([v for v in reversed(draft.visible) if v.rank == 0])
    layer = draft.module(f"nn.Bilinear({x.channels}, {other.channels}, {draft.pick(WIDTHS)})")
    return draft.emit(f"{layer}({x}, {other})")
