"""Reads and writes at indices, sorting, boolean masks, cumulative sums; in maps and in tokens."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, TOKENS, require, step


@step(weight=2)
def write_channels(draft: Draft, x: Value) -> Value:
    """Assignment to some channels (YOLO heads, Fixup): a constant, a function of them, another value."""
    require(x.channels >= 3)
    new = draft.pick(("0.0", "OUT[:, :2].sigmoid()", "OUT[:, -2:]", "0.5", "OUT[:, :2] * 2 + 0.3"))
    left = draft.pick(("OUT[:, :2]", "OUT[:, 1:3]"))
    operator = draft.pick(("=", "+=", "="))
    return draft.block(f"OUT = {x}.clone()\n{left} {operator} {new}")


@step(weight=2, reads=TOKENS)
def write_tokens(draft: Draft, x: Value) -> Value:
    """Assignment to tokens or to features."""
    require(x.length >= 3 and x.features >= 4)
    options = (
        "OUT[:, 0] = 0.0", "OUT[:, 0] = OUT[:, 1]", "OUT[..., :2] = OUT[..., :2].tanh()",
        "OUT[:, 1:] += 0.25", "OUT[:, :, 2:] *= 0.5", "OUT[:, -1] = OUT.mean(1)", "OUT[..., 1] = 0.3",
    )  # fmt: skip
    return draft.block(f"OUT = {x}.clone()\n{draft.pick(options)}")


@step(weight=2, reads=ANY)
def masked_values(draft: Draft, x: Value) -> Value:
    """Comparisons that choose element by element, with a mask that is written out."""
    options = (
        "{x}.masked_fill({x} > 0.8137, 0.2)", "torch.where({x}.abs() < 0.5117, {x}, {x} * 0.5)",
        "{x} * (({x} > -0.7123) & ({x} < 0.9137))", "{x}.masked_fill(~({x} > 0.1317), 0.0)",
        "torch.where(({x} > 0.3171) | ({x} < -0.3171), {x}, torch.full_like({x}, 0.1))",
        "{x} * ({x} != 0.2317).to({x}.dtype)",
        "torch.clamp({x}, min=-0.8, max=0.8) - {x}.ge(0.2713).float() * 0.5",
        "{x}.where({x} > 0.0717, {x}.new_zeros(()))",
    )  # fmt: skip
    return draft.emit(draft.pick(options).format(x=x))


@step(weight=2, reads=TOKENS)
def masked_tokens(draft: Draft, x: Value) -> Value:
    """A mask over tokens made in the graph from their places or from what they are."""
    seen = draft.pick((
        f"(torch.arange({x}.shape[1]) < {x.length - 1})[None, :, None]",
        f"({x}.sum(-1, keepdim=True) > 0.0713)", f"({x}[..., :1] > -0.1131)",
        f"({x}.mean(-1) > -0.1).unsqueeze(-1)",
    ))  # fmt: skip
    mask = draft.local(seen)
    options = (
        f"{x} * {mask}", f"{x}.masked_fill(~{mask}, 0.1)",
        f"torch.where({mask}, {x}, {draft.parameter(x.features)})",
        f"({x} * {mask}).sum(1, keepdim=True) / ({mask}.sum(1, keepdim=True) + 1.0)",
    )  # fmt: skip
    return draft.emit(draft.pick(options))


@step(weight=2, reads=TOKENS)
def chosen_tokens(draft: Draft, x: Value) -> Value:
    """The best tokens by a learned score (topk, sort) and gather; or all in another order."""
    require(x.length >= 3)
    score = draft.local(f"{draft.module(f'nn.Linear({x.features}, 1)')}({x}).squeeze(-1)")
    best = draft.pick((
        f"{score}.topk(2, dim=1)[1]", f"torch.sort({score}, dim=1, descending=True)[1][:, :2]",
        f"{score}.argsort(dim=1)", f"{score}.argmax(dim=1, keepdim=True)",
    ))  # fmt: skip
    index = draft.local(
        f"({best}).unsqueeze(-1).expand(-1, -1, {draft.pick((str(x.features), f'{x}.shape[-1]'))})"
    )
    options = (
        f"torch.gather({x}, 1, {index})",
        f"{x}.gather(dim=1, index={index})",
        f"torch.take_along_dim({x}, {index}, dim=1)",
    )
    return draft.emit(draft.pick(options))


@step(weight=1, reads=TOKENS)
def sorted_features(draft: Draft, x: Value) -> Value:
    """Features or tokens in the order of their values: sort, topk, median, cumulative maximum."""
    require(x.length >= 3 and x.features >= 3)
    options = (
        "torch.sort({x}, dim=1)[0]", "{x}.topk(2, dim=-1)[0]", "{x}.sort(dim=-1, descending=True)[0]",
        "{x}.topk(2, dim=1).values", "{x}.median(dim=1, keepdim=True)[0]", "{x}.cummax(dim=1)[0]",
        "{x}.kthvalue(2, dim=-1, keepdim=True)[0]",
    )  # fmt: skip
    return draft.emit(draft.pick(options).format(x=x))


@step(weight=2, reads=TOKENS)
def cumulated_tokens(draft: Draft, x: Value) -> Value:
    """Causal averages and differences along the tokens, cumulative sums along the features."""
    count = f"torch.arange(1, {x}.shape[1] + 1, dtype={x}.dtype).view(1, -1, 1)"
    options = (
        f"{x}.cumsum(1) / {count}", f"torch.cumsum({x}, dim=-1) * 0.2", f"torch.diff({x}, dim=1)",
        f"{x} - F.pad({x}, (0, 0, 1, 0))[:, :-1]", f"{x} + torch.roll({x}, 1, 1)",
        f"{x} * 0.5 + {x}.roll(2, dims=-1)",
        f"torch.cat([{x}[:, :1], {x}[:, :-1]], dim=1)", f"F.pad({x}, (0, 2, 0, 1), value=0.3)",
    )  # fmt: skip
    return draft.emit(draft.pick(options))


@step(weight=2, reads=TOKENS)
def token_shift(draft: Draft, x: Value) -> Value:
    """RWKV's shift: each feature mixed with that of the previous token by a learned share."""
    share = draft.parameter(1, 1, x.features)
    before = draft.local(draft.pick((f"F.pad({x}, (0, 0, 1, -1))", f"torch.roll({x}, shifts=1, dims=1)",
                                     f"nn.ZeroPad2d((0, 0, 1, -1))({x})")))  # fmt: skip
    return draft.emit(
        draft.pick((f"{x} * {share} + {before} * (1.0 - {share})", f"torch.lerp({before}, {x}, {share})"))
    )


@step(weight=1, reads=TOKENS)
def scattered(draft: Draft, x: Value) -> Value:
    """index_select, index_add, scatter, index_copy along the tokens or the features."""
    require(x.length >= 3 and x.features >= 3)
    features = draft.buffer(f"torch.arange({x.features}).flip(0)", persistent=False)
    tokens = draft.buffer(f"torch.arange({x.length}) // 2", persistent=False)
    draft.flags.add("fixed size")
    options = (
        f"{x}[..., {features}]", f"torch.index_select({x}, -1, {features})", f"{x}[:, {tokens}]",
        f"torch.zeros_like({x}).index_add(1, {tokens}, {x})", f"{x}.index_copy(2, {features}, {x}.tanh())",
        f"torch.zeros_like({x}).scatter_add(1, {tokens}[None, :, None].expand_as({x}), {x})",
        f"{x}.index_fill(1, {tokens}[:1], 0.2)",
    )  # fmt: skip
    return draft.emit(draft.pick(options))
