"""Reductions over space and over channels."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step


@step(weight=4)
def reduce_space(draft: Draft, x: Value) -> Value:
    """Over one or all spatial axes, with the axes kept or not."""
    require(x.rank >= 1)
    axes = draft.pick((tuple(range(2, x.rank + 2)), (-1,), (2,)))
    keep = draft.pick(("", ", keepdim=True"))
    functions = ("{x}.mean({a}{k})", "{x}.sum({a}{k}) * 0.1", "{x}.amax({a}{k})",
                 "torch.mean({x}, dim={a}{k})",
                 "{x}.amin({a}{k})", "torch.logsumexp({x}, {a}{k})", "{x}.std({a}{k}, correction=0)",
                 "{x}.var({a}{k}, unbiased=False)", "torch.linalg.vector_norm({x}, dim={a}{k})")  # fmt: skip
    code = draft.pick(functions)
    # The derivative of a standard deviation or norm at zero variance is infinite: keep away from it.
    operand = f"({x} + 0.1)" if "norm" in code else str(x)
    require(x.space[-1] > 1 or not ("std" in code or "vector_norm" in code))
    return draft.emit(code.format(x=operand, a=axes, k=keep))


@step(weight=3)
def reduce_channels(draft: Draft, x: Value) -> Value:
    """To one channel: the consumers see all channels through it."""
    functions = ("{x}.mean(1, keepdim=True)", "{x}.sum(dim=1, keepdim=True)", "{x}.amax(1, keepdim=True)",
                 "torch.max({x}, dim=1, keepdim=True)[0]", "{x}.var(1, keepdim=True, unbiased=False)",
                 "torch.logsumexp({x}, dim=1, keepdim=True)", "torch.mean({x}, 1, keepdim=True)",
                 "{x}.sum(1).unsqueeze(1)", "{x}.amin(dim=1, keepdim=True)")  # fmt: skip
    return draft.emit(draft.pick(functions).format(x=x))


@step(weight=1)
def spatial_gate(draft: Draft, x: Value) -> Value:
    """CBAM's spatial attention: mean and max over channels, convolved, gate all channels."""
    require(x.rank == 2)
    stats = draft.emit(f"torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], dim=1)")
    return draft.emit(f"{x} * torch.sigmoid({draft.module('nn.Conv2d(2, 1, 3, padding=1)')}({stats}))")


@step(weight=1)
def center(draft: Draft, x: Value) -> Value:
    """Subtract the mean over channels or over space."""
    axis = draft.pick((1, -1)) if x.rank else 1
    return draft.emit(f"{x} - {x}.mean({axis}, keepdim=True)")


@step(weight=1)
def maxout(draft: Draft, x: Value) -> Value:
    """Maximum over groups of channels, by view."""
    groups = draft.divisor(x.channels, above=1)
    require(groups < x.channels)
    return draft.emit(f"{x}.unflatten(1, ({groups}, {x.channels // groups})).amax(dim={draft.pick((2, 1))})")
