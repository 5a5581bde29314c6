"""Joining branches: arithmetic between values, broadcasts, concatenation, stacking."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, require, step

ARITHMETIC = (
    "{a} + {b}", "{a} - {b}", "{a} * {b}", "torch.add({a}, {b}, alpha=0.5)", "{a} / ({b}.abs() + 0.5)",
    "torch.maximum({a}, {b})", "torch.minimum({a}, {b})", "torch.where({a} > 0.1379, {a}, {b})",
    "torch.mul({a}, {b})", "torch.sub({a}, {b}, alpha=2)", "torch.lerp({a}, {b}, 0.25)", "({a} + {b}) * 0.5",
    "torch.atan2({a}, {b}.abs() + 0.5)", "torch.stack([{a}, {b}]).mean(0)",
    "torch.sum(torch.stack([{a}, {b}]), 0)",
)  # fmt: skip


@step(weight=7, reads=ANY)
def arithmetic(draft: Draft, x: Value) -> Value:
    other = draft.partner(x)
    return draft.emit(draft.pick(("{a} + {b}", *ARITHMETIC)).format(a=x, b=other))


@step(weight=2, reads=ANY)
def add_in_place(draft: Draft, x: Value) -> Value:
    other = draft.partner(x)
    code = draft.pick(("{a} += {b}", "{a} *= {b}", "{a} -= {b}")).format(a="OUT", b=other)
    out = draft.block(f"OUT = {x}\n{code}")
    draft.values.remove(x)
    return out


@step(weight=2)
def broadcast_vector(draft: Draft, x: Value) -> Value:
    """A [N, C] or [N, C, 1, 1] value joined with one that has space."""
    require(x.rank >= 1)
    others = [v for v in reversed(draft.visible) if v.channels in (1, x.channels)]
    vectors = [v for v in others if v.rank == 0 or (v.rank == x.rank and set(v.space) == {1} and v != x)]
    if not vectors:
        pooled = draft.emit(
            f"{draft.visible[0]}.flatten(2).mean(2)" if draft.visible[0].rank else f"{draft.visible[0]}"
        )
        layer = draft.module(f"nn.Linear({pooled.channels}, {x.channels})")
        vectors = [draft.emit(f"{layer}({pooled})")]
    other = draft.pick(vectors)
    index = "" if other.rank else f"[:, :{', None' * x.rank}]"
    return draft.emit(f"{x} {draft.pick(('+', '*', '-'))} {other}{index}")


@step(weight=2)
def mix_channels(draft: Draft, x: Value) -> Value:
    """A value with one channel broadcast over all channels of another."""
    require(x.rank >= 1)
    gate = draft.emit(f"{draft.module(f'nn.Conv{x.rank}d({x.channels}, 1, 1)')}({x})")
    return draft.emit(draft.pick(("{x} * {g}.sigmoid()", "{x} + {g}", "{g} - {x}")).format(x=x, g=gate))


@step(weight=6)
def cat_channels(draft: Draft, x: Value) -> Value:
    """Concatenation along channels, sometimes with itself, sometimes of three."""
    fitting = [v for v in reversed(draft.visible) if v.space == x.space and v.rank == x.rank]
    others = [draft.pick(fitting) for _ in range(draft.pick((1, 1, 2)))]
    require(sum(v.channels for v in others) + x.channels <= 24)
    names = [str(v) for v in (x, *others)]
    names = names if draft.pick((False, True)) else names[::-1]
    return draft.emit(f"torch.cat([{', '.join(names)}], dim={draft.pick(('1', str(-1 - x.rank)))})")


@step(weight=2)
def cat_space(draft: Draft, x: Value) -> Value:
    require(x.rank >= 1)
    others = [v for v in reversed(draft.visible) if v.shape[:-1] == x.shape[:-1]]
    return draft.emit(f"torch.cat([{x}, {draft.pick(others)}], dim=-1)")


@step(weight=2)
def cat_with_constant(draft: Draft, x: Value) -> Value:
    """Channels of ones or of a learned map appended to the value."""
    require(x.rank >= 1)
    ones = f"torch.ones_like({x}[:, :1])"
    learned = (
        f"{draft.parameter(1, 2, *[1] * x.rank)}.expand({x}.shape[0], -1, {', '.join(map(str, x.space))})"
    )
    choice = draft.pick((ones, learned))
    if choice == learned:
        draft.flags.add("fixed size")
    return draft.emit(f"torch.cat([{choice}, {x}], 1)")


@step(weight=2)
def stack(draft: Draft, x: Value) -> Value:
    """A new axis from two values, reduced again or merged into the channels."""
    other = draft.partner(x)
    stacked = draft.emit(f"torch.stack(({x}, {other}), dim={draft.pick((1, 2))})")
    options = (f"{stacked}.mean(dim=1)", f"{stacked}.amax(2)", f"{stacked}.flatten(1, 2)", f"{stacked}[:, 0]")
    return draft.emit(draft.pick(options))


@step(weight=1)
def distance(draft: Draft, x: Value) -> Value:
    """Similarity of two branches over their channels."""
    other = draft.partner(x)
    code = draft.pick(("F.cosine_similarity({a}, {b}, dim=1, eps=0.1)", "({a} * {b}).sum(1)"))
    return draft.emit(f"{code.format(a=x, b=other)}.unsqueeze(1)")
