"""Attention over tokens in the spellings of timm and Hugging Face: projections, positions, masks, scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.generator.draft import Draft, Value
from tests.generator.embedding import MOST_INPUTS
from tests.generator.registry import TOKENS, require, step
from tests.generator.tokens import residual


@dataclass(frozen=True)
class Heads:
    """Queries [N, heads, T, width] and keys and values [N, heads (or fewer), S, width], by name."""

    query: str
    key: str
    value: str
    count: int
    width: int

    @classmethod
    def of(cls, names: Iterable[str], count: int, width: int) -> Heads:
        query, key, value = names
        return cls(query, key, value, count, width)


SHAPES = ((2, 4), (2, 3), (3, 2), (4, 2), (2, 6), (1, 4), (4, 4))  # heads, width


def linear(draft: Draft, inside: int, out: int) -> str:
    return draft.module(f"nn.Linear({inside}, {out}{draft.pick(('', '', ', bias=False'))})")


def split_heads(draft: Draft, name: str, heads: int, width: int) -> str:
    """[N, T, heads·width] to [N, heads, T, width]."""
    n, t = f"{name}.shape[0]", f"{name}.shape[1]"
    options = (
        f"{name}.view({n}, {t}, {heads}, {width}).transpose(1, 2)",
        f"{name}.view(*{name}.shape[:-1], -1, {width}).transpose(1, 2)",
        f"{name}.reshape({n}, -1, {heads}, {width}).permute(0, 2, 1, 3)",
        f"{name}.unflatten(-1, ({heads}, {width})).transpose(-3, -2)",
    )
    return draft.local(draft.pick(options))


def separate(draft: Draft, x: Value, other: Value, heads: int, width: int) -> Heads:
    """Three projections; keys and values read `other`."""
    names = [draft.local(f"{linear(draft, v.features, heads * width)}({v})") for v in (x, other, other)]
    return Heads.of((split_heads(draft, name, heads, width) for name in names), heads, width)


def fused(draft: Draft, x: Value, heads: int, width: int) -> Heads:
    """One projection to queries, keys and values, taken apart as timm, GPT-2, GPT-NeoX and others do."""
    inner = draft.local(f"{linear(draft, x.features, 3 * heads * width)}({x})")
    n, t = f"{x}.shape[0]", f"{x}.shape[1]"
    form = draft.pick(("timm", "chunk", "split", "per head", "unbind", "index", "slices"))
    if form == "timm":
        stacked = f"{inner}.reshape({n}, {t}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4).unbind(0)"
        return Heads.of(draft.locals(stacked, 3), heads, width)
    if form == "index":
        stacked = draft.local(f"{inner}.view({n}, {t}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4)")
        return Heads.of(draft.locals(f"{stacked}[0], {stacked}[1], {stacked}[2]", 3), heads, width)
    if form == "per head":
        parts = draft.locals(
            f"{inner}.view({n}, {t}, {heads}, {3 * width}).transpose(1, 2).chunk(3, dim=-1)", 3
        )
        return Heads.of(parts, heads, width)
    if form == "unbind":
        parts = draft.locals(f"{inner}.unflatten(-1, (3, {heads}, {width})).unbind(2)", 3)
        return Heads.of((draft.local(f"{part}.transpose(1, 2)") for part in parts), heads, width)
    size = heads * width
    code = {
        "chunk": f"{inner}.chunk(3, dim=-1)",
        "split": f"{inner}.split({size}, dim=2)",
        "slices": f"{inner}[..., :{size}], {inner}[..., {size}:{2 * size}], {inner}[..., {2 * size}:]",
    }[form]
    return Heads.of((split_heads(draft, part, heads, width) for part in draft.locals(code, 3)), heads, width)


def grouped(draft: Draft, x: Value, heads: int, width: int) -> Heads:
    """Fewer key and value heads than query heads, from separate projections or one (Falcon, Phi-3)."""
    fewer = draft.pick([d for d in (1, 2) if heads % d == 0 and d < heads])
    n, t = f"{x}.shape[0]", f"{x}.shape[1]"
    form = draft.pick(("separate", "heads", "split"))
    if form == "separate":
        sizes = (heads, fewer, fewer)
        names = [draft.local(f"{linear(draft, x.features, size * width)}({x})") for size in sizes]
        parts = [split_heads(draft, *pair, width) for pair in zip(names, sizes, strict=True)]
    else:
        inner = draft.local(f"{linear(draft, x.features, (heads + 2 * fewer) * width)}({x})")
        if form == "heads":
            inner = draft.local(f"{inner}.view({n}, {t}, {heads + 2 * fewer}, {width})")
            code = f"{inner}[:, :, :{heads}], {inner}[:, :, {heads}:{-fewer}], {inner}[:, :, {-fewer}:]"
            parts = [draft.local(f"{name}.transpose(1, 2)") for name in draft.locals(code, 3)]
        else:
            code = f"{inner}.split([{heads * width}, {fewer * width}, {fewer * width}], dim=-1)"
            split = zip(draft.locals(code, 3), (heads, fewer, fewer), strict=True)
            parts = [split_heads(draft, name, count, width) for name, count in split]
    return Heads.of(parts, heads, width)


def repeat_heads(draft: Draft, name: str, heads: int) -> str:
    """Key or value heads repeated to the number of query heads."""
    fewer, width = draft.shape(name)[1], draft.shape(name)[3]
    times = heads // fewer
    options = (
        f"{name}[:, :, None].expand(-1, -1, {times}, -1, -1).reshape({name}.shape[0], {heads}, -1, {width})",
        f"{name}.repeat_interleave({times}, dim=1)",
        f"torch.stack([{name}] * {times}, dim=2).flatten(1, 2)",
        f"{name}.unsqueeze(2).repeat(1, 1, {times}, 1, 1).flatten(1, 2)",
    )
    return draft.local(draft.pick(options))


def rotate(draft: Draft, heads: Heads) -> Heads:
    """Rotary positions: by halves (Llama), interleaved (GPT-J), on part of the width, as complex numbers."""
    require(heads.width % 2 == 0)
    form = draft.pick(("halves", "halves", "interleaved", "partial", "complex"))
    width = 2 if form == "partial" else heads.width
    length = f"{heads.query}.shape[2]"
    if draft.pick((True, False)):
        rate = draft.buffer(f"torch.linspace(1.0, 0.1, {width // 2}, dtype=torch.float64)", persistent=False)
    else:
        rate = draft.local(
            f"1.0 / (30.0 ** (torch.arange(0, {width}, 2, dtype={heads.query}.dtype) / {width}))"
        )
    places = f"torch.arange({length}, dtype={heads.query}.dtype)"
    angle = draft.local(
        draft.pick((f"torch.outer({places}, {rate})", f"{places}[:, None] * {rate}[None, :]"))
    )
    if form == "complex":
        turn = draft.local(f"torch.polar(torch.ones_like({angle}), {angle})")
        turned = [
            f"torch.view_as_real(torch.view_as_complex({name}.unflatten(-1, (-1, 2)).contiguous()) * {turn})"
            ".flatten(3)"
            for name in (heads.query, heads.key)
        ]
    else:
        spread = (
            f"torch.stack([{angle}, {angle}], -1).flatten(-2)"
            if form == "interleaved"
            else (f"torch.cat(({angle}, {angle}), dim=-1)")
        )
        angles = draft.local(spread)
        cos, sin = draft.locals(f"{angles}.cos()[None, None], {angles}.sin()[None, None]", 2)
        turned = [_turned(draft, name, form, width, cos, sin) for name in (heads.query, heads.key)]
    query, key = (draft.local(code) for code in turned)
    return Heads(query, key, heads.value, heads.count, heads.width)


def _turned(draft: Draft, name: str, form: str, width: int, cos: str, sin: str) -> str:
    if form == "interleaved":
        other = f"torch.stack((-{name}[..., 1::2], {name}[..., ::2]), dim=-1).flatten(-2)"
        return f"{name} * {cos} + {other} * {sin}"
    if form == "partial":
        part, rest = draft.locals(f"{name}[..., :{width}], {name}[..., {width}:]", 2)
        turned = f"{part} * {cos} + torch.cat((-{part}[..., 1:], {part}[..., :1]), dim=-1) * {sin}"
        return f"torch.cat(({turned}, {rest}), dim=-1)"
    half = width // 2
    if draft.pick((True, False)):
        other = f"torch.cat((-{name}[..., {half}:], {name}[..., :{half}]), dim=-1)"
    else:
        first, second = draft.locals(f"{name}.chunk(2, dim=-1)", 2)
        other = f"torch.cat((-{second}, {first}), dim=-1)"
    return f"{name} * {cos} + {other} * {sin}"


def bias(draft: Draft, heads: Heads, *, kinds: Sequence[str]) -> str:
    """What is added to the scores (or a bool mask): nothing, positions per head, or what may be seen."""
    t, s = draft.shape(heads.query)[2], draft.shape(heads.key)[2]
    rows, columns, like = f"{heads.query}.shape[2]", f"{heads.key}.shape[2]", f"dtype={heads.query}.dtype"
    kind = draft.pick(kinds)
    if kind == "none":
        return ""
    if kind == "table":  # Swin, T5: a row per relative position, a column per head
        draft.flags.add("fixed size")
        table = draft.parameter(t + s - 1, heads.count)
        index = draft.buffer(f"torch.arange({t})[:, None] - torch.arange({s})[None, :] + {s - 1}",
                             persistent=draft.pick((False, True)))  # fmt: skip
        if draft.pick((True, False)):
            picked = (
                f"{table}[{index}.view(-1)].view({t}, {s}, -1).permute(2, 0, 1).contiguous().unsqueeze(0)"
            )
        else:
            embedded = draft.module(f"nn.Embedding({t + s - 1}, {heads.count})")
            picked = f"{embedded}({index}).permute(2, 0, 1)[None]"
        return draft.local(picked)
    if kind == "learned":
        draft.flags.add("fixed size")
        return draft.parameter(*draft.pick(((heads.count, t, s), (1, heads.count, t, s), (t, s))))
    if kind == "alibi":
        slopes = draft.buffer(
            f"torch.linspace(0.5, 0.1, {heads.count}, dtype=torch.float64)", persistent=False
        )
        distance = f"torch.arange({columns}, {like})[None, :] - torch.arange({rows}, {like})[:, None]"
        return draft.local(f"{slopes}.view(1, -1, 1, 1) * ({distance})")
    if kind == "padding":
        require(len(draft.inputs) < MOST_INPUTS)
        seen = draft.input((s,), vocabulary=2)
        return draft.local(f"(1.0 - {seen}[:, None, None, :].to({heads.query}.dtype)) * -30.0")
    return draft.local(draft.pick((
        f"torch.ones({rows}, {columns}, dtype=torch.bool).tril()",
        f"torch.arange({columns})[None, :] <= torch.arange({rows})[:, None]",
        f"torch.triu(torch.full(({rows}, {columns}), -1e4, {like}), diagonal=1)",
        f"torch.tril(torch.ones({rows}, {columns}, dtype=torch.bool)).view(1, 1, {rows}, {columns})",
    )))  # fmt: skip


EVERY = ("none", "none", "table", "causal", "none", "alibi", "learned", "padding")


def attend(draft: Draft, heads: Heads, kinds: Sequence[str] = EVERY, *, talking: bool = False) -> str:
    """softmax(q kᵀ · scale + bias) v as a name of shape [N, heads, T, width]."""
    q, k, v, scale = heads.query, heads.key, heads.value, f"{heads.width} ** -0.5"
    form = draft.pick(("sdpa", "explicit", "divided", "einsum", "bmm", "cosine", "sdpa"))
    fewer = draft.shape(k)[1] < heads.count
    if fewer and form == "sdpa" and draft.pick((False, True)):
        return draft.local(f"F.scaled_dot_product_attention({q}, {k}, {v}, enable_gqa=True)")
    if fewer:
        k, v = repeat_heads(draft, k, heads.count), repeat_heads(draft, v, heads.count)
    added = bias(draft, heads, kinds=kinds)
    if form == "sdpa" and not talking:
        mask = f", attn_mask={added}" if added else draft.pick(("", ", is_causal=True", ", scale=0.4"))
        mask = mask if draft.shape(q)[2] == draft.shape(k)[2] or "causal" not in mask else ""
        return draft.local(f"F.scaled_dot_product_attention({q}, {k}, {v}{mask})")
    if form == "divided":
        scores = draft.local(f"torch.matmul({q}, {k}.transpose(-1, -2)) / {heads.width**0.5}")
    elif form == "einsum":
        scores = draft.local(f"torch.einsum('bhqd,bhkd->bhqk', {q}, {k}) * {scale}")
    elif form == "bmm":
        flat = draft.local(f"torch.bmm({q}.flatten(0, 1), {k}.flatten(0, 1).transpose(1, 2))")
        scores = draft.local(f"{flat}.view({q}.shape[0], {heads.count}, {q}.shape[2], -1) * {scale}")
    elif form == "cosine":
        temperature = draft.parameter(heads.count, 1, 1)
        product = f"F.normalize({q}, dim=-1, eps=0.1) @ F.normalize({k}, dim=-1, eps=0.1).transpose(-2, -1)"
        scores = draft.local(f"({product}) * torch.clamp({temperature}, max=0.9111).exp()")
    else:
        scores = draft.local(f"({q} * {scale}) @ {k}.transpose(-2, -1)")
    if added:
        seen = eval(added, draft.scope).dtype == draft.scope["torch"].bool
        scores = draft.local(f"{scores}.masked_fill(~{added}, -1e4)" if seen else f"{scores} + {added}")
    if talking:
        scores = _talk(draft, scores, heads.count)
    weights = draft.local(draft.pick((f"{scores}.softmax(dim=-1)", f"F.softmax({scores}, -1)",
        f"torch.softmax({scores} - {scores}.amax(-1, keepdim=True).detach(), dim=-1)")))  # fmt: skip
    if talking:
        weights = _talk(draft, weights, heads.count)
    if draft.pick((False, False, True)):
        weights = draft.local(f"{draft.module('nn.Dropout(0.2)')}({weights})")
    return draft.local(draft.pick((f"{weights} @ {v}", f"torch.einsum('bhqk,bhkd->bhqd', {weights}, {v})")))


def _talk(draft: Draft, scores: str, heads: int) -> str:
    """A linear map over the head axis."""
    if draft.pick((True, False)):
        layer = draft.module(f"nn.Linear({heads}, {heads})")
        return draft.local(f"{layer}({scores}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")
    return draft.local(f"{draft.module(f'nn.Conv2d({heads}, {heads}, 1)')}({scores})")


def merge_heads(draft: Draft, x: Value, out: str, size: int) -> Value:
    """[N, heads, T, width] to [N, T, features] by an output projection."""
    n, t = f"{out}.shape[0]", f"{out}.shape[2]"
    options = (
        f"{out}.transpose(1, 2).reshape({n}, {t}, {size})",
        f"{out}.transpose(1, 2).flatten(2)",
        f"{out}.permute(0, 2, 1, 3).contiguous().view({n}, {t}, -1)",
        f"{out}.transpose(1, 2).contiguous().view(*({n}, {t}), {size})",
    )
    merged = draft.local(draft.pick(options))
    form = draft.pick(("linear", "linear", "einsum", "gated"))
    if form == "einsum":  # DeBERTa-like: the projection reads heads and widths as two axes
        count, width = draft.shape(out)[1], draft.shape(out)[3]
        weight = draft.parameter(count, width, x.features)
        return draft.emit(f"torch.einsum('bhtd,hdc->btc', {out}, {weight})")
    if form == "gated":
        merged = draft.local(f"{merged} * torch.sigmoid({linear(draft, x.features, size)}({x}))")
    return draft.emit(f"{linear(draft, size, x.features)}({merged})")


def normed(draft: Draft, heads: Heads) -> Heads:
    """Queries and keys through a LayerNorm or RMSNorm over their width, where drawn."""
    if heads.width < 2 or not draft.pick((False, False, False, True)):
        return heads
    kind = draft.pick(("LayerNorm", "RMSNorm"))
    query, key = (
        draft.local(f"{draft.module(f'nn.{kind}({heads.width}, eps=1e-3)')}({name})")
        for name in (heads.query, heads.key)
    )
    return Heads(query, key, heads.value, heads.count, heads.width)


@step(weight=6, reads=TOKENS)
def self_attention(draft: Draft, x: Value) -> Value:
    def inner(y: Value) -> Value:
        heads = normed(draft, separate(draft, y, y, *draft.pick(SHAPES)))
        return merge_heads(draft, y, attend(draft, heads), heads.count * heads.width)

    return residual(draft, x, inner)


@step(weight=6, reads=TOKENS)
def fused_attention(draft: Draft, x: Value) -> Value:
    def inner(y: Value) -> Value:
        heads = normed(draft, fused(draft, y, *draft.pick(SHAPES)))
        return merge_heads(draft, y, attend(draft, heads), heads.count * heads.width)

    return residual(draft, x, inner)


@step(weight=4, reads=TOKENS)
def rotary_attention(draft: Draft, x: Value) -> Value:
    """Llama's: grouped queries or not, rotary positions, often causal."""

    def inner(y: Value) -> Value:
        shape = draft.pick(((2, 4), (4, 2), (2, 6), (4, 4)))
        make = draft.pick((grouped, grouped, fused))
        heads = rotate(draft, make(draft, y, *shape))
        out = attend(draft, heads, ("none", "causal", "padding"))
        return merge_heads(draft, y, out, heads.count * heads.width)

    return residual(draft, x, inner)


@step(weight=3, reads=TOKENS)
def grouped_query_attention(draft: Draft, x: Value) -> Value:
    def inner(y: Value) -> Value:
        heads = grouped(draft, y, *draft.pick(((2, 4), (4, 2), (2, 3), (4, 3))))
        return merge_heads(draft, y, attend(draft, heads), heads.count * heads.width)

    return residual(draft, x, inner)


@step(weight=2, reads=TOKENS)
def cross_attention(draft: Draft, x: Value) -> Value:
    """Queries from one value, keys and values from another, whose length and features may differ."""
    other = draft.pick([v for v in reversed(draft.visible) if v.name != x.name])

    def inner(y: Value) -> Value:
        heads = separate(draft, y, other, *draft.pick(SHAPES))
        out = attend(draft, heads, ("none", "table", "learned", "padding"))
        return merge_heads(draft, y, out, heads.count * heads.width)

    return residual(draft, x, inner)


@step(weight=2, reads=TOKENS)
def talking_heads(draft: Draft, x: Value) -> Value:
    """CaiT's: linear maps over the heads before and after the softmax."""
    heads = fused(draft, x, *draft.pick(SHAPES))
    out = attend(draft, heads, ("none", "table"), talking=True)
    return draft.emit(f"{x} + {merge_heads(draft, x, out, heads.count * heads.width)}")


@step(weight=2, reads=TOKENS)
def class_attention(draft: Draft, x: Value) -> Value:
    """One query, the class token; the result replaces it."""
    count, width = draft.pick(SHAPES)
    size, n = count * width, f"{x}.shape[0]"
    projected = f"{linear(draft, x.features, size)}({x}[:, 0]).unsqueeze(1)"
    query = draft.local(f"{projected}.reshape({n}, 1, {count}, {width}).permute(0, 2, 1, 3)")
    key, value = (
        split_heads(draft, draft.local(f"{linear(draft, x.features, size)}({x})"), count, width) for _ in "kv"
    )
    out = attend(draft, Heads(query, key, value, count, width), ("none",))
    cls = merge_heads(draft, Value(f"{x}[:, :1]", (*x.shape[:1], 1, x.features), True), out, size)
    return draft.emit(draft.pick((f"torch.cat([{cls}, {x}[:, 1:]], dim=1)", f"{x} + {cls}", f"{cls}")))


@step(weight=2, reads=TOKENS)
def attention_pool(draft: Draft, x: Value) -> Value:
    """Learned queries read the tokens (Perceiver, SigLIP), or a softmax over tokens weights their mean."""
    if draft.pick((False, True)):
        weights = draft.local(f"{draft.module(f'nn.Linear({x.features}, 1)')}({x}).softmax(dim=1)")
        options = (f"({weights} * {x}).sum(1, keepdim=True)", f"{weights}.transpose(1, 2) @ {x}")
        return draft.emit(draft.pick(options))
    latent = draft.parameter(1, draft.pick((1, 2, 3)), x.features)
    queries = draft.emit(f"{latent}.expand({x}.shape[0], -1, -1)")
    heads = separate(draft, queries, x, *draft.pick(SHAPES))
    return merge_heads(draft, queries, attend(draft, heads, ("none",)), heads.count * heads.width)


@step(weight=2, reads=TOKENS)
def linear_attention(draft: Draft, x: Value) -> Value:
    """softmax(q) (softmax(k)ᵀ v), or with positive features and a normalizer."""
    heads = draft.pick((fused, lambda *a: separate(a[0], a[1], *a[1:])))(draft, x, *draft.pick(SHAPES))
    q, k, v = heads.query, heads.key, heads.value
    if draft.pick((True, False)):
        q, k = draft.locals(f"{q}.softmax(dim=-1), {k}.softmax(dim=-2)", 2)
        context = draft.local(
            draft.pick((f"{k}.transpose(-2, -1) @ {v}", f"torch.einsum('bhnd,bhne->bhde', {k}, {v})"))
        )
        out = draft.local(f"{q} @ {context}")
    else:
        q, k = draft.locals(f"F.elu({q}) + 1.0, F.relu({k}) + 0.1", 2)
        total = draft.local(f"{q} @ {k}.sum(dim=-2).unsqueeze(-1)")
        out = draft.local(f"({q} @ ({k}.transpose(-2, -1) @ {v})) / ({total} + 0.1)")
    return draft.emit(f"{x} + {merge_heads(draft, x, out, heads.count * heads.width)}")


@step(weight=2, reads=TOKENS)
def channel_attention(draft: Draft, x: Value) -> Value:
    """XCiT, DaViT: features attend to features within a head."""
    heads = fused(draft, x, *draft.pick(((2, 4), (2, 3), (1, 4), (3, 2))))
    q, k = (f"F.normalize({name}.transpose(-2, -1), dim=-1, eps=0.1)" for name in (heads.query, heads.key))
    weights = draft.local(
        f"({q} @ {k}.transpose(-2, -1) * {draft.parameter(heads.count, 1, 1)}).softmax(dim=-1)"
    )
    out = draft.local(f"({weights} @ {heads.value}.transpose(-2, -1)).transpose(-2, -1)")
    return draft.emit(f"{x} + {merge_heads(draft, x, out, heads.count * heads.width)}")


@step(weight=2, reads=TOKENS)
def window_attention(draft: Draft, x: Value) -> Value:
    """Swin's: tokens as an image, rolled, cut into windows, attended, put together and rolled back."""
    require(x.length in (16, 36, 24, 12, 8))
    draft.flags.add("fixed size")
    rows, columns = {16: (4, 4), 36: (6, 6), 24: (4, 6), 12: (2, 6), 8: (2, 4)}[x.length]
    c, n, side, shift = x.features, f"{x}.shape[0]", 2, draft.pick((0, 1))
    image = draft.local(f"{x}.view({n}, {rows}, {columns}, {c})")
    if shift:
        image = draft.local(f"torch.roll({image}, shifts=(-1, -1), dims=(1, 2))")
    cut = f"{image}.view({n}, {rows // side}, {side}, {columns // side}, {side}, {c})"
    windows = draft.local(f"{cut}.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, {side * side}, {c})")
    window = Value(windows, draft.shape(windows), True)
    count, width = draft.pick(SHAPES)
    heads = fused(draft, window, count, width)
    out = attend(draft, heads, ("none", "table", "learned"))
    size = count * width
    joined = f"{out}.transpose(1, 2).reshape(-1, {side * side}, {size})"
    merged = draft.local(f"{linear(draft, size, c)}({joined})")
    grid = f"{merged}.view(-1, {rows // side}, {columns // side}, {side}, {side}, {c})"
    back = draft.local(f"{grid}.permute(0, 1, 3, 2, 4, 5).reshape(-1, {rows}, {columns}, {c})")
    if shift:
        back = draft.local(f"torch.roll({back}, shifts=(1, 1), dims=(1, 2))")
    return draft.emit(f"{x} + {back}.view({n}, {x.length}, {c})")


@step(weight=2, reads=TOKENS)
def attention_module(draft: Draft, x: Value) -> Value:
    """`nn.MultiheadAttention`, `nn.TransformerEncoderLayer` or `nn.TransformerDecoderLayer`."""
    heads = draft.pick([d for d in (2, 1, 4, 3) if x.features % d == 0])
    form = draft.pick(("attention", "layer", "attention", "pre-norm layer", "decoder"))
    if form == "attention":
        layer = draft.module(f"nn.MultiheadAttention({x.features}, {heads}, batch_first=True)")
        weights = draft.pick((", need_weights=False", ""))
        return draft.emit(f"{x} + {layer}({x}, {x}, {x}{weights})[0]")
    options = f"{x.features}, {heads}, dim_feedforward={draft.pick((6, 10))}, batch_first=True"
    options += draft.pick(("", ", activation='gelu'", ", bias=False"))
    if draft.pick((True, False)):
        options += ", dropout=0.0"
    else:  # the attention weights are dropped by the function, not by a module
        draft.flags.add("functional randomness")
    if form == "decoder":
        other = draft.pick([v for v in reversed(draft.visible) if v.features == x.features])
        return draft.emit(f"{draft.module(f'nn.TransformerDecoderLayer({options})')}({x}, {other})")
    options += ", norm_first=True" if form == "pre-norm layer" else ""
    return draft.emit(f"{draft.module(f'nn.TransformerEncoderLayer({options})')}({x})")
