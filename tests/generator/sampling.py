"""Sampling and transforms of space: grids, grid_sample, fold, Fourier transforms, einsum, resizing."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, TOKENS, require, step


@step(weight=2)
def coordinates(draft: Draft, x: Value) -> Value:
    """Position grids made in the graph (CoordConv): as further channels, or through a convolution."""
    require(x.rank == 2)
    h, w, like = f"{x}.shape[2]", f"{x}.shape[3]", f"dtype={x}.dtype"
    place = draft.pick(("torch.linspace(-1, 1, {n}, {like})", "torch.arange({n}, {like}) / {n}"))
    sides = ", ".join(place.format(n=n, like=like) for n in (h, w))
    rows, columns = draft.locals(f"torch.meshgrid({sides}, indexing='ij')", 2)
    grid = draft.local(f"torch.stack([{rows}, {columns}])[None].expand({x}.shape[0], -1, -1, -1)")
    if draft.pick((True, False)):
        return draft.emit(f"torch.cat([{x}, {grid}], dim=1)")
    return draft.emit(f"{x} + {draft.module(f'nn.Conv2d(2, {x.channels}, 1)')}({grid})")


@step(weight=2)
def warp(draft: Draft, x: Value) -> Value:
    """grid_sample at an affine grid (spatial transformer) or at offsets that a convolution predicts."""
    require(x.rank == 2 and min(x.space) >= 3)
    mode = draft.pick(("zeros", "border", "reflection"))
    options = f"padding_mode='{mode}', align_corners={draft.pick((False, True))}"
    if draft.pick((True, False)):
        angles = draft.local(f"torch.tanh({draft.module(f'nn.Linear({x.channels}, 6)')}({x}.mean((2, 3))))")
        grid = draft.local(f"F.affine_grid({angles}.view(-1, 2, 3), {x}.shape, align_corners=False)")
    else:
        offsets = draft.module(f"nn.Conv2d({x.channels}, 2, 3, padding=1)")
        grid = draft.local(f"torch.tanh({offsets}({x})).permute(0, 2, 3, 1)")
    return draft.emit(f"F.grid_sample({x}, {grid}, {options})")


@step(weight=1)
def fold(draft: Draft, x: Value) -> Value:
    """im2col, a layer on the columns, col2im back; or patches by Tensor.unfold."""
    require(x.rank == 2 and x.channels <= 6 and all(n % 2 == 0 for n in x.space))
    draft.flags.add("fixed size")
    if draft.pick((True, False)):
        size = x.channels * 4
        layer = draft.module(f"nn.Linear({size}, {size})")
        columns = draft.local(f"F.unfold({x}, 2, stride=2).transpose(1, 2)")
        return draft.emit(f"F.fold({layer}({columns}).transpose(1, 2), {tuple(x.space)}, 2, stride=2)")
    return draft.emit(f"{x}.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))")


@step(weight=1)
def resized(draft: Draft, x: Value) -> Value:
    """Interpolation to a given size in the other modes; a position map resized to the value's space."""
    require(x.rank == 2)
    if draft.pick((True, False)):
        mode = draft.pick(("bicubic", "nearest-exact", "bilinear"))
        more = ", antialias=True" if mode == "bilinear" else ""
        return draft.emit(f"F.interpolate({x}, size=({draft.pick((5, 3))}, 4), mode='{mode}'{more})")
    table = draft.parameter(1, x.channels, 3, 3)
    return draft.emit(
        f"{x} + F.interpolate({table}, size={x}.shape[-2:], mode='bicubic', align_corners=False)"
    )


@step(weight=1, reads=ANY)
def fourier(draft: Draft, x: Value) -> Value:
    """FNet's mixing and spectral filters: channels stay apart or are mixed by the transform."""
    require(x.tokens or x.rank >= 1)
    options = [f"torch.fft.fft({x}, dim=-1).real * 0.3", f"torch.fft.rfft({x}, dim=-1).abs()"]
    if x.tokens:
        options += [f"torch.fft.fft(torch.fft.fft({x}, dim=-1), dim=1).real * 0.1"]
        options += [f"torch.fft.irfft(torch.fft.rfft({x}, dim=1) * 0.5, n={x}.shape[1], dim=1)"]
    return draft.emit(draft.pick(options))


@step(weight=2, reads=TOKENS)
def token_einsum(draft: Draft, x: Value) -> Value:
    """Products of tokens with themselves or another value, over tokens or over features."""
    alike = [v for v in reversed(draft.visible) if v.length == x.length]
    other = draft.pick(alike)
    options = (
        "torch.einsum('btc,btd->bcd', {a}, {b}) * 0.2", "torch.einsum('btc,bsc->bts', {a}, {b}) * 0.2",
        "torch.einsum('btc,btc->bt', {a}, {b}).unsqueeze(-1) * {a} * 0.2", "{a}.transpose(1, 2) @ {b} * 0.2",
        "torch.baddbmm({a} @ {b}.mT, {a}, {b}.mT, alpha=0.5) * 0.2", "torch.matmul({a}.mT, {b}) * 0.2",
    )  # fmt: skip
    return draft.emit(draft.pick(options).format(a=x, b=other))


@step(weight=1)
def axis_einsum(draft: Draft, x: Value) -> Value:
    """Mixing along one spatial axis, and heads over channels, as einsums."""
    require(x.rank == 2)
    heads = draft.divisor(x.channels)
    draft.flags.add("fixed size")
    weight = draft.parameter(x.space[1], x.space[1])
    turn = draft.parameter(heads, x.channels // heads, x.channels // heads)
    options = (
        f"torch.einsum('nchw,wv->nchv', {x}, {weight})",
        f"torch.einsum('ngdhw,gde->ngehw', {x}.unflatten(1, ({heads}, -1)), {turn}).flatten(1, 2)",
        f"torch.einsum('nchw,nchv->nwv', {x}, {x}).unsqueeze(1) * 0.1",
    )
    return draft.emit(draft.pick(options))
