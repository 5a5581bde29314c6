"""Normalizations: over the batch, over instances, over groups of channels, over channels."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.linear import from_last, to_last
from tests.generator.registry import require, step

EPSILONS = ("", "", ", eps=1e-3", ", eps=0.02")


@step(weight=12)
def batch_norm(draft: Draft, x: Value) -> Value:
    require(x.rank <= 3)
    options = draft.pick(EPSILONS) + draft.pick(("", "", ", momentum=0.03", ", momentum=None"))
    options += draft.pick(("", "", "", ", affine=False"))
    options += draft.pick(("", "", "", "", "", ", track_running_stats=False")) if x.rank else ""
    return draft.emit(f"{draft.module(f'nn.BatchNorm{max(x.rank, 1)}d({x.channels}{options})')}({x})")


@step(weight=2)
def instance_norm(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    options = draft.pick(("", ", affine=True")) + draft.pick(EPSILONS)
    options += draft.pick(("", "", ", track_running_stats=True"))
    return draft.emit(f"{draft.module(f'nn.InstanceNorm{x.rank}d({x.channels}{options})')}({x})")


@step(weight=3)
def group_norm(draft: Draft, x: Value) -> Value:
    groups = draft.divisor(x.channels)
    require(x.rank >= 1 or groups < x.channels)
    options = draft.pick(EPSILONS) + draft.pick(("", "", ", affine=False"))
    return draft.emit(f"{draft.module(f'nn.GroupNorm({groups}, {x.channels}{options})')}({x})")


@step(weight=3)
def layer_norm_channels(draft: Draft, x: Value) -> Value:
    """LayerNorm over channels: directly on vectors, channels-last on anything larger."""
    require(x.channels > 1)
    options = draft.pick(EPSILONS) + draft.pick(("", "", ", elementwise_affine=False", ", bias=False"))
    layer = draft.module(f"nn.LayerNorm({x.channels}{options})")
    if x.rank == 0:
        return draft.emit(f"{layer}({x})")
    return draft.emit(from_last(f"{layer}({to_last(x)})", x.rank))


@step(weight=1)
def layer_norm_all(draft: Draft, x: Value) -> Value:
    """LayerNorm over [C, H, W] at once."""
    require(1 <= x.rank <= 2)
    draft.flags.add("fixed size")
    return draft.emit(f"{draft.module(f'nn.LayerNorm({list(x.shape[1:])}{draft.pick(EPSILONS)})')}({x})")


@step(weight=1)
def layer_norm_space(draft: Draft, x: Value) -> Value:
    """LayerNorm over the last spatial axis only; the channels are independent of each other."""
    require(x.rank >= 1 and x.space[-1] > 1)
    draft.flags.add("fixed size")
    return draft.emit(f"{draft.module(f'nn.LayerNorm({x.space[-1]})')}({x})")


@step(weight=1)
def local_response_norm(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    options = f"{draft.pick((3, 5, 2))}, alpha={draft.pick((0.1, 1e-4))}, k={draft.pick((1.0, 2.0))}"
    return draft.emit(f"{draft.module(f'nn.LocalResponseNorm({options})')}({x})")


@step(weight=1)
def l2_normalize(draft: Draft, x: Value) -> Value:
    return draft.emit(f"F.normalize({x}, dim=1, eps=0.1)")


@step(weight=1)
def rms_norm(draft: Draft, x: Value) -> Value:
    """RMSNorm over channels, written out or as the module."""
    if x.rank == 0 and draft.pick((True, False)):
        return draft.emit(f"{draft.module(f'nn.RMSNorm({x.channels}, eps=1e-3)')}({x})")
    scale = draft.parameter(x.channels, *[1] * x.rank)
    return draft.emit(f"{x} * torch.rsqrt({x}.pow(2).mean(1, keepdim=True) + 1e-3) * {scale}")


@step(weight=1)
def standardize(draft: Draft, x: Value) -> Value:
    """Mean and variance over channels, written out."""
    require(x.channels > 1)
    mean = draft.emit(f"{x}.mean(dim=1, keepdim=True)")
    var = draft.emit(f"{x}.var(dim=1, keepdim=True, unbiased={draft.pick((False, True))})")
    return draft.emit(f"({x} - {mean}) / torch.sqrt({var} + 1e-3)")
