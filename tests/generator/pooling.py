"""Pooling, constant and other padding, interpolation."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step


@step(weight=3)
def max_pool(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    kernel = draft.pick((2, 3))
    options = f"{kernel}, stride={draft.pick((2, 1))}, padding={draft.pick((0, 1))}"
    options += draft.pick(("", "", ", ceil_mode=True")) + draft.pick(("", "", "", ", dilation=2"))
    functional = f"F.max_pool{x.rank}d({x}, {options})"
    return draft.emit(draft.pick((f"{draft.module(f'nn.MaxPool{x.rank}d({options})')}({x})", functional)))


@step(weight=4)
def avg_pool(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    options = f"{draft.pick((3, 2))}, stride={draft.pick((2, 1))}, padding={draft.pick((1, 0))}"
    options += draft.pick(("", ", ceil_mode=True")) + draft.pick(("", ", count_include_pad=False"))
    options += draft.pick(("", "", "", ", divisor_override=3")) if x.rank > 1 else ""
    functional = f"F.avg_pool{x.rank}d({x}, {options})"
    return draft.emit(draft.pick((f"{draft.module(f'nn.AvgPool{x.rank}d({options})')}({x})", functional)))


@step(weight=3)
def adaptive_pool(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    kind, size = draft.pick(("Avg", "Avg", "Max")), draft.pick((1, 2, 3))
    functional = f"F.adaptive_{kind.lower()}_pool{x.rank}d({x}, {size})"
    module = f"nn.Adaptive{kind}Pool{x.rank}d({size})"
    return draft.emit(functional if draft.pick((False, True)) else f"{draft.module(module)}({x})")


@step(weight=1)
def lp_pool(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 2)
    return draft.emit(
        f"{draft.module(f'nn.LPPool{x.rank}d(2, {draft.pick((2, 3))}, stride=1)')}({x}.abs() + 0.1)"
    )


@step(weight=3)
def pad(draft: Draft, x: Value) -> Value:
    """Constant padding of space, with zero or not."""
    require(x.rank >= 1)
    widths = [draft.pick((1, 0, 2)) for _ in range(2 * min(x.rank, 2))]
    value = draft.pick(("", ", value=1.0", ", value=-0.4"))
    return draft.emit(f"F.pad({x}, {widths}{value})")


@step(weight=1)
def pad_by_mode(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 2)
    mode = draft.pick(("reflect", "replicate", "circular"))
    return draft.emit(f"F.pad({x}, {[1] * 2 * x.rank}, mode='{mode}')")


@step(weight=1)
def pad_module(draft: Draft, x: Value) -> Value:
    require(x.rank == 2)
    options = (
        "ZeroPad2d(1)",
        "ConstantPad2d((0, 1, 2, 0), 0.5)",
        "ReflectionPad2d(1)",
        "ReplicationPad2d(1)",
    )
    return draft.emit(f"{draft.module(f'nn.{draft.pick(options)}')}({x})")


@step(weight=2)
def pad_channels(draft: Draft, x: Value) -> Value:
    """Extra constant channels, as parameter-free ResNet shortcuts have."""
    widths = [0, 0] * x.rank + [draft.pick((1, 0)), draft.pick((2, 1))]
    return draft.emit(f"F.pad({x}, {widths}{draft.pick(('', ', value=1.0'))})")


@step(weight=2)
def interpolate(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3 and max(x.space) <= 9)
    mode = draft.pick(("nearest", ("linear", "bilinear", "trilinear")[x.rank - 1], "area"))
    options = f"scale_factor=2, mode='{mode}'"
    if mode.endswith("linear"):
        options += f", align_corners={draft.pick((False, True))}"
    functional = f"F.interpolate({x}, {options})"
    return draft.emit(draft.pick((functional, f"{draft.module(f'nn.Upsample({options})')}({x})")))


@step(weight=1)
def resize_like(draft: Draft, x: Value) -> Value:
    """Resize to another value's space, as U-Nets and FPNs do, and join."""
    require(1 <= x.rank <= 3)
    other = draft.pick([v for v in reversed(draft.visible) if v.rank == x.rank and v != x])
    resized = draft.emit(f"F.interpolate({x}, size={other}.shape[2:], mode='nearest')")
    return draft.emit(f"torch.cat([{resized}, {other}], dim=1)")


@step(weight=1)
def unfold(draft: Draft, x: Value) -> Value:
    """im2col: channels become channels times window."""
    require(x.rank == 2 and x.channels <= 6)
    return draft.emit(f"F.unfold({x}, kernel_size=2, padding={draft.pick((0, 1))})")
