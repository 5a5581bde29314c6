"""Tokens [N, T, features]: made from maps and back, class tokens, positions, mixing, pooling, residuals."""

from __future__ import annotations

from collections.abc import Callable

from tests.generator.draft import Draft, Value
from tests.generator.registry import TOKENS, require, step

FEATURES = (8, 12, 16, 6, 10)
MOST_TOKENS = 40


def as_tokens(draft: Draft, x: Value) -> Value:
    """The map `x` as tokens: positions flattened, a patch embedding, or features split into tokens."""
    draft.tokens = True
    if x.rank == 0:
        length, features = draft.pick((4, 5, 3)), draft.pick(FEATURES)
        layer = draft.module(f"nn.Linear({x.channels}, {length * features})")
        return draft.emit(draft.pick((f"{layer}({x}).view(-1, {length}, {features})", f"{x}.unsqueeze(1)")))
    size = 1
    for n in x.space:
        size *= n
    code = str(x)
    if size > MOST_TOKENS or draft.pick((False, True)):
        patch = min(*x.space, 2 if size <= 4 * MOST_TOKENS else 3, 3)
        layer = f"nn.Conv{x.rank}d({x.channels}, {draft.pick(FEATURES)}, {patch}, {patch})"
        code = f"{draft.module(layer)}({x})"
    if x.rank == 1:
        return draft.emit(draft.pick((f"{code}.transpose(1, 2)", f"{code}.permute(0, 2, 1)", f"{code}.mT")))
    axes = ", ".join(map(str, range(2, x.rank + 2)))
    last = f"{code}.permute(0, {axes}, 1)"
    options = (f"{code}.flatten(2).transpose(1, 2)", f"{last}.flatten(1, {x.rank})")
    return draft.emit(draft.pick(options))


def as_map(draft: Draft, x: Value) -> Value:
    """The tokens `x` as a map: a sequence, an image where the count allows it, or a vector."""
    draft.tokens = False
    rows = [d for d in (2, 3, 4, 5) if x.length % d == 0 and d < x.length]
    forms = ("image", "image", "sequence", "mean", "first") if rows else ("sequence", "mean", "first")
    form = draft.pick(forms)
    if form == "image":
        draft.flags.add("fixed size")
        sides = f"{rows[-1]}, {x.length // rows[-1]}"
        options = (
            f"{x}.transpose(1, 2).reshape({x}.shape[0], {x.features}, {sides})",
            f"{x}.view(-1, {sides}, {x.features}).permute(0, 3, 1, 2)",
            f"{x}.transpose(1, 2).unflatten(2, ({sides})).contiguous()",
            f"{x}.permute(0, 2, 1).view({x}.shape[0], -1, {sides})",
        )
        return draft.emit(draft.pick(options))
    return draft.emit(
        {"sequence": f"{x}.transpose(1, 2)", "mean": f"{x}.mean(1)", "first": f"{x}[:, 0]"}[form]
    )


def norm(draft: Draft, x: Value) -> Value:
    """A LayerNorm or RMSNorm module over the features."""
    require(x.features > 1)
    options = ("LayerNorm({c})", "LayerNorm({c})", "RMSNorm({c}, eps=1e-3)", "LayerNorm({c}, bias=False)")
    code = draft.pick((*options, "LayerNorm({c}, eps=1e-3, elementwise_affine=False)"))
    return draft.emit(f"{draft.module('nn.' + code.format(c=x.features))}({x})")


def residual(draft: Draft, x: Value, inner: Callable[[Value], Value]) -> Value:
    """`inner` as transformers use it: pre-norm, post-norm, scaled per feature, or without the residual."""
    form = draft.pick(("pre", "post", "bare", "scaled", "plain"))
    branch = inner(norm(draft, x) if form in ("pre", "scaled") else x)
    if form == "bare":
        return branch
    if form == "scaled":
        branch = draft.emit(f"{branch} * {draft.parameter(branch.features)}")
    summed = draft.emit(f"{x} + {branch}" if branch.shape == x.shape else f"{branch} * 1.5")
    return norm(draft, summed) if form == "post" else summed


@step(weight=5, reads=TOKENS)
def token_linear(draft: Draft, x: Value) -> Value:
    bias = draft.pick(("", "", ", bias=False"))
    return draft.emit(f"{draft.module(f'nn.Linear({x.features}, {draft.pick(FEATURES)}{bias})')}({x})")


@step(weight=3, reads=TOKENS)
def token_norm(draft: Draft, x: Value) -> Value:
    return norm(draft, x)


@step(weight=3, reads=TOKENS)
def class_token(draft: Draft, x: Value) -> Value:
    """Learned tokens in front of (or behind) the others, as parameters; often with positions after it."""
    count = draft.pick((1, 1, 2))
    token = draft.parameter(1, count, x.features)
    made = draft.pick((f"{token}.expand({x}.shape[0], -1, -1)", f"{token}.repeat({x}.size(0), 1, 1)"))
    ordered = draft.pick((f"{made}, {x}", f"{x}, {made}"))
    joined = draft.emit(f"torch.cat(({ordered}), dim=1)")
    if draft.pick((True, False)):
        draft.flags.add("fixed size")
        joined = draft.emit(f"{joined} + {draft.parameter(1, joined.length, joined.features)}")
    return joined


@step(weight=3, reads=TOKENS)
def token_positions(draft: Draft, x: Value) -> Value:
    """Positions: a parameter, an Embedding at arange or at a buffer, sinusoids made in the graph."""
    draft.flags.add("fixed size")
    t, c = x.length, x.features
    form = draft.pick(("parameter", "embedding", "buffer", "sinusoid", "longer"))
    if form == "parameter":
        return draft.emit(f"{x} + {draft.parameter(*draft.pick(((1, t, c), (t, c), (1, 1, c))))}")
    if form == "longer":
        return draft.emit(f"{x} + {draft.parameter(1, t + 3, c)}[:, :{x}.size(1)]")
    if form == "sinusoid":
        require(c % 2 == 0)
        place = draft.local(f"torch.arange({x}.shape[1], dtype={x}.dtype).unsqueeze(1)")
        rate = draft.local(f"torch.exp(torch.arange(0, {c}, 2, dtype={x}.dtype) * {-4.0 / c})")
        angle = draft.local(f"{place} * {rate}")
        both = draft.pick((f"torch.cat([{angle}.sin(), {angle}.cos()], dim=-1)",
                           f"torch.stack([{angle}.sin(), {angle}.cos()], dim=-1).flatten(-2)"))  # fmt: skip
        return draft.emit(f"{x} * {draft.pick((1.0, c**0.5))} + {both}")
    table = draft.module(f"nn.Embedding({t + draft.pick((0, 4))}, {c})")
    at = f"torch.arange({x}.shape[1])"
    if form == "buffer":
        places = draft.buffer(f"torch.arange({t}).expand(1, -1)", persistent=draft.pick((True, False)))
        at = f"{places}[:, :{x}.shape[1]]"
    return draft.emit(f"{x} + {table}({at})")


@step(weight=2, reads=TOKENS)
def mix_tokens(draft: Draft, x: Value) -> Value:
    """MLP-Mixer: a Linear or Conv1d over the token axis, added to its input."""
    draft.flags.add("fixed size")
    hidden = draft.pick((6, 4))
    first, second = (
        draft.module(f"nn.Linear({a}, {b})") for a, b in ((x.length, hidden), (hidden, x.length))
    )
    mixed = draft.local(f"{second}(F.gelu({first}({x}.transpose(1, 2))))")
    return draft.emit(draft.pick((f"{x} + {mixed}.transpose(1, 2)", f"{mixed}.mT")))


@step(weight=2, reads=TOKENS)
def token_convolution(draft: Draft, x: Value) -> Value:
    """A depthwise or dense convolution along the tokens, as Conformer and hybrid transformers have."""
    groups = draft.pick((x.features, 1))
    layer = draft.module(f"nn.Conv1d({x.features}, {x.features}, 3, padding=1, groups={groups})")
    out = draft.local(f"{layer}({x}.transpose(1, 2))")
    return draft.emit(draft.pick((f"{x} + {out}.transpose(1, 2)", f"F.silu({out}.transpose(1, 2))")))


@step(weight=2, reads=TOKENS)
def merge_tokens(draft: Draft, x: Value) -> Value:
    """Neighbouring tokens merged into one (Swin): by slices and cat, or by reshape; then a projection."""
    require(x.length % 2 == 0)
    form = draft.pick(("slices", "reshape", "literal"))
    if form == "slices":
        merged = draft.emit(f"torch.cat([{x}[:, 0::2], {x}[:, 1::2]], dim=-1)")
    elif form == "reshape":
        merged = draft.emit(f"{x}.reshape({x}.shape[0], -1, {2 * x.features})")
    else:
        draft.flags.add("fixed size")
        merged = draft.emit(f"{x}.view(-1, {x.length // 2}, {2 * x.features})")
    if draft.pick((True, False)):
        merged = norm(draft, merged)
    return draft.emit(
        f"{draft.module(f'nn.Linear({merged.features}, {draft.pick(FEATURES)}, bias=False)')}({merged})"
    )


@step(weight=2, reads=TOKENS)
def drop_tokens(draft: Draft, x: Value) -> Value:
    """Some tokens only: without the class token, every other one, the first, a chosen list."""
    require(x.length >= 3)
    options = (
        f"{x}[:, 1:]",
        f"{x}[:, ::2]",
        f"{x}[:, :2]",
        f"{x}[:, [0, 2]]",
        f"{x}.narrow(1, 1, 2)",
        f"{x}.flip(1)",
    )
    return draft.emit(draft.pick(options))


@step(weight=2, reads=TOKENS)
def join_features(draft: Draft, x: Value) -> Value:
    """Concatenation along the features or along the tokens with an earlier value."""
    alike = [v for v in reversed(draft.visible) if v.length == x.length and v.features + x.features <= 24]
    if draft.pick((True, False)):
        return draft.emit(f"torch.cat([{x}, {draft.pick(alike)}], dim=-1)")
    alike = [v for v in reversed(draft.visible) if v.features == x.features and v.length + x.length <= 20]
    return draft.emit(f"torch.cat([{x}, {draft.pick(alike)}], dim=1)")


@step(weight=2, reads=TOKENS)
def pool_and_broadcast(draft: Draft, x: Value) -> Value:
    """A summary of all tokens given back to each."""
    pooled = draft.pick((f"{x}.mean(1, keepdim=True)", f"{x}.amax(dim=1, keepdim=True)", f"{x}[:, :1]"))
    joined = draft.pick((
        f"{x} + {{p}}", f"{x} * {{p}}.sigmoid()", f"torch.cat([{x}, {{p}}.expand_as({x})], -1)",
        f"{x} - {{p}}",
    ))  # fmt: skip
    return draft.emit(joined.format(p=draft.local(pooled)))


@step(weight=2, reads=TOKENS)
def squeeze_excite_tokens(draft: Draft, x: Value) -> Value:
    """Squeeze-excite over the tokens' mean."""
    first, second = (draft.module(f"nn.Linear({a}, {b})") for a, b in ((x.features, 4), (4, x.features)))
    gate = draft.local(f"{second}(F.relu({first}({x}.mean(dim=1))))")
    return draft.emit(f"{x} * torch.sigmoid({gate}).unsqueeze(1)")
