"""Normalizations over the features of tokens, written out by hand."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import TOKENS, require, step


@step(weight=3, reads=TOKENS)
def rms_norm_by_hand(draft: Draft, x: Value) -> Value:
    """x / sqrt(mean(x²) + eps) · w in the spellings of Llama, T5 and Gemma."""
    weight = draft.parameter(x.features)
    spellings = (
        "{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-3) * {w}",
        "{w} * ({x} * torch.rsqrt({x}.to(torch.float64).pow(2).mean(-1, keepdim=True) + 1e-3)).type_as({x})",
        "{x} * torch.rsqrt(torch.mean({x} * {x}, dim=-1, keepdim=True) + 1e-3) * (1.0 + {w})",
        "{x} / torch.sqrt({x}.square().mean(dim=2, keepdim=True) + 0.01) * {w}",
        "{x} / ({x}.norm(dim=-1, keepdim=True) * {root} + 0.1) * {w}",
    )
    return draft.emit(draft.pick(spellings).format(x=x, w=weight, root=x.features**-0.5))


@step(weight=2, reads=TOKENS)
def layer_norm_by_hand(draft: Draft, x: Value) -> Value:
    require(x.features > 1)
    weight, bias = draft.parameter(x.features), draft.parameter(x.features)
    mean = draft.local(f"{x}.mean(-1, keepdim=True)")
    var = draft.local(
        draft.pick(
            (f"({x} - {mean}).pow(2).mean(-1, keepdim=True)", f"{x}.var(-1, keepdim=True, unbiased=False)")
        )
    )
    scaled = draft.pick(
        (f"({x} - {mean}) * torch.rsqrt({var} + 1e-3)", f"({x} - {mean}) / ({var} + 1e-3).sqrt()")
    )
    return draft.emit(f"{scaled} * {weight} + {bias}")


@step(weight=1, reads=TOKENS)
def functional_norm(draft: Draft, x: Value) -> Value:
    """`F.layer_norm` with free parameters, L2-normalize, softmax over the features."""
    require(x.features > 1)
    weight, bias = draft.parameter(x.features), draft.parameter(x.features)
    options = (
        f"F.layer_norm({x}, ({x.features},), {weight}, {bias}, 1e-3)",
        f"F.normalize({x}, dim=-1, eps=0.1)",
        f"F.layer_norm({x}, [{x}.shape[-1]])",
        f"{x}.softmax(dim=-1)",
        f"F.rms_norm({x}, ({x.features},), {weight}, eps=1e-3)",
        f"{x} / ({x}.abs().sum(-1, keepdim=True) + 1.0)",
    )
    return draft.emit(draft.pick(options))


@step(weight=2, reads=TOKENS)
def global_response_norm(draft: Draft, x: Value) -> Value:
    """GRN of ConvNeXt V2: the norm over tokens, divided by its mean over features."""
    weight, bias = (draft.parameter(1, 1, x.features) for _ in "wb")
    total = draft.local(f"torch.norm({x} + 0.1, p=2, dim=1, keepdim=True)")
    share = draft.local(f"{total} / ({total}.mean(dim=-1, keepdim=True) + 1e-3)")
    return draft.emit(
        draft.pick(("{w} * ({x} * {s}) + {b} + {x}", "torch.addcmul({b}, {w}, {x} * {s})")).format(
            w=weight, b=bias, x=x, s=share
        )
    )


@step(weight=1, reads=TOKENS)
def batch_norm_features(draft: Draft, x: Value) -> Value:
    """BatchNorm1d over features through a transpose or a flatten (LeViT)."""
    layer = draft.module(f"nn.BatchNorm1d({x.features})")
    options = (f"{layer}({x}.transpose(1, 2)).transpose(1, 2)", f"{layer}({x}.flatten(0, 1)).reshape_as({x})")
    return draft.emit(draft.pick(options))
