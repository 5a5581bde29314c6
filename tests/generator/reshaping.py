"""Moving channels about: split, slice, select, shuffle, flip, flatten, pixel shuffle."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step


@step(weight=3)
def split(draft: Draft, x: Value) -> tuple[Value, ...]:
    """Parts of the channels, all of which later steps can use."""
    require(x.channels >= 2)
    first = draft.pick(range(1, x.channels))
    sizes = [first, x.channels - first]
    if x.channels % 2 == 0 and draft.pick((True, False)):
        return draft.emit_several(
            draft.pick((f"{x}.chunk(2, dim=1)", f"torch.split({x}, {x.channels // 2}, 1)")), 2
        )
    code = draft.pick((f"torch.split({x}, {sizes}, dim=1)", f"{x}.tensor_split(({first},), dim=1)"))
    return draft.emit_several(code, 2)


@step(weight=2)
def split_and_merge(draft: Draft, x: Value) -> Value:
    """ShuffleNet-like: one half is worked on, both are concatenated."""
    require(x.channels % 2 == 0 and 1 <= x.rank <= 3)
    left, right = draft.emit_several(f"{x}.chunk(2, dim=1)", 2)
    half = x.channels // 2
    layer = draft.module(f"nn.Conv{x.rank}d({half}, {half}, 3, padding=1)")
    worked = draft.emit(
        draft.pick(("F.relu({l}({v}))", "{l}({v})", "F.silu({l}({v}))")).format(l=layer, v=right)
    )
    return draft.emit(f"torch.cat([{left}, {worked}], dim=1)")


@step(weight=1)
def unbind(draft: Draft, x: Value) -> Value:
    require(2 <= x.channels <= 4 and x.rank >= 1)
    parts = draft.emit_several(f"{x}.unbind(dim=1)", x.channels)
    return draft.emit(f"torch.stack([{', '.join(map(str, parts[::-1]))}], dim=1) + {parts[0]}.unsqueeze(1)")


@step(weight=3)
def slice_channels(draft: Draft, x: Value) -> Value:
    require(x.channels >= 3)
    index = list(range(x.channels))[:: draft.pick((-1, 2))]
    options = (
        f"{x}[:, 1:]",
        f"{x}[:, :-1]",
        f"{x}[:, ::2]",
        f"{x}.narrow(1, 1, {x.channels - 2})",
        f"torch.index_select({x}, 1, torch.tensor({index}))",
        f"{x}[:, {index}]",
        f"{x}[:, 1:2]",
        f"{x}[:, -2:]",
    )
    return draft.emit(draft.pick(options))


@step(weight=2)
def permute_channels(draft: Draft, x: Value) -> Value:
    shift = draft.pick((1, 2, -1))
    return draft.emit(
        draft.pick((f"{x}.flip(1)", f"torch.roll({x}, {shift}, dims=1)", f"torch.flip({x}, dims=[1])"))
    )


@step(weight=1)
def crop(draft: Draft, x: Value) -> Value:
    """Slices and flips of space, which leave channels alone."""
    require(x.rank >= 1 and x.space[-1] >= 3)
    return draft.emit(draft.pick((f"{x}[..., 1:]", f"{x}[..., ::2]", f"{x}.flip(-1)", f"{x}[:, :, :-1]")))


@step(weight=1)
def select_position(draft: Draft, x: Value) -> Value:
    require(x.rank >= 1)
    return draft.emit(draft.pick((f"{x}[..., 0]", f"{x}.select(-1, -1)", f"{x}[:, :, 0]")))


@step(weight=2)
def channel_shuffle(draft: Draft, x: Value) -> Value:
    """ShuffleNet's shuffle by view and transpose, or as the module."""
    groups = draft.divisor(x.channels, above=1)
    require(x.rank >= 1 and groups < x.channels)
    size = draft.pick(("tail", "literal"))
    tail = ", ".join(f"{x}.shape[{i + 2}]" if size == "tail" else str(n) for i, n in enumerate(x.space))
    if size == "literal":
        draft.flags.add("fixed size")
    grouped = f"{x}.view({x}.shape[0], {groups}, {x.channels // groups}, {tail})"
    options = [f"{grouped}.transpose(1, 2).reshape({x}.shape[0], -1, {tail})"]
    if x.rank == 2:
        options.append(f"{draft.module(f'nn.ChannelShuffle({groups})')}({x})")
    return draft.emit(draft.pick(options))


@step(weight=2)
def pixel_shuffle(draft: Draft, x: Value) -> Value:
    require(x.rank == 2 and x.channels % 4 == 0)
    return draft.emit(draft.pick((f"{draft.module('nn.PixelShuffle(2)')}({x})", f"F.pixel_shuffle({x}, 2)")))


@step(weight=2)
def pixel_unshuffle(draft: Draft, x: Value) -> Value:
    require(x.rank == 2 and x.channels <= 6)
    return draft.emit(
        draft.pick((f"{draft.module('nn.PixelUnshuffle(2)')}({x})", f"F.pixel_unshuffle({x}, 2)"))
    )


@step(weight=1)
def space_to_channels(draft: Draft, x: Value) -> Value:
    """Focus/stem slicing: four shifted half-resolution copies as channels."""
    require(x.rank == 2 and x.channels <= 6 and all(n % 2 == 0 for n in x.space))
    parts = ", ".join(f"{x}[..., {i}::2, {j}::2]" for i in (0, 1) for j in (0, 1))
    return draft.emit(f"torch.cat([{parts}], dim=1)")


@step(weight=2)
def flatten_space(draft: Draft, x: Value) -> Value:
    """[N, C, H, W] to [N, C, H·W]."""
    require(x.rank >= 2)
    options = (f"{x}.flatten(2)", f"{x}.view({x}.size(0), {x}.size(1), -1)", f"torch.flatten({x}, 2)")
    return draft.emit(draft.pick(options))


@step(weight=2)
def unflatten(draft: Draft, x: Value) -> Value:
    """Channels factored into channels and a new spatial axis."""
    parts = draft.divisor(x.channels, above=1)
    require(x.rank <= 2 and parts < x.channels)
    options = (
        f"{x}.unflatten(1, ({parts}, {x.channels // parts}))",
        f"{x}.unflatten(1, ({parts}, -1))",
        f"{draft.module(f'nn.Unflatten(1, ({parts}, {x.channels // parts}))')}({x})",
    )
    return draft.emit(draft.pick(options))


@step(weight=2)
def swap_axes(draft: Draft, x: Value) -> Value:
    """Channels and space change roles, or two spatial axes do."""
    require(x.rank >= 1)
    options = [f"{x}.transpose(1, 2)", f"{x}.movedim(1, -1)", f"{x}.transpose(-1, -2)"]
    draft.flags.add("fixed size")
    return draft.emit(draft.pick(options))


@step(weight=3)
def flatten_all(draft: Draft, x: Value) -> Value:
    """[N, C, ...] to [N, C·...] in each way people write it."""
    require(x.rank >= 1)
    size = 1
    for n in x.shape[1:]:
        size *= n
    require(size <= 150)
    draft.flags.add("fixed size")
    options = (
        f"{x}.flatten(1)",
        f"{x}.reshape({x}.shape[0], -1)",
        f"{x}.reshape(-1, {size})",
        f"{draft.module('nn.Flatten()')}({x})",
        f"torch.flatten({x}, start_dim=1)",
        f"{x}.contiguous().view(-1, {size})",
        f"torch.reshape({x}, ({x}.size(0), {x}.shape[1] * {size // x.channels}))",
    )
    return draft.emit(draft.pick(options))


@step(weight=1)
def unsqueeze(draft: Draft, x: Value) -> Value:
    """A vector becomes a 1×1 image or a one-channel sequence."""
    require(x.rank == 0)
    return draft.emit(draft.pick((f"{x}[:, :, None, None]", f"{x}.unsqueeze(-1)", f"{x}.unsqueeze(1)")))


@step(weight=1)
def repeat(draft: Draft, x: Value) -> Value:
    require(x.channels <= 8)
    ones = ", 1" * x.rank
    options = (
        f"{x}.repeat(1, 2{ones})",
        f"{x}.repeat_interleave(2, dim=1)",
        f"torch.tile({x}, (1, 2{ones}))",
    )
    return draft.emit(draft.pick(options))
