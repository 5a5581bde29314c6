"""The blocks convnets are made of: residual, inverted residual, dense, inception, ConvNeXt, Sequential."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step

ACTIVATIONS = ("ReLU", "ReLU", "SiLU", "GELU", "Sigmoid", "Hardswish")


@step(weight=9)
def sequential(draft: Draft, x: Value) -> Value:
    """Convolution, BatchNorm, activation under one name."""
    require(1 <= x.rank <= 3)
    out, act = draft.pick((4, 6, 8, 5)), draft.pick(ACTIVATIONS)
    stride = draft.pick((1, 1, 2))
    options = f"stride={stride}, padding=1, bias={draft.pick((False, True))}"
    conv = f"nn.Conv{x.rank}d({x.channels}, {out}, 3, {options})"
    return draft.emit(
        f"{draft.module(f'nn.Sequential({conv}, nn.BatchNorm{x.rank}d({out}), nn.{act}())')}({x})"
    )


@step(weight=8)
def residual(draft: Draft, x: Value) -> Value:
    """Basic block; the shortcut is the identity or a projection, the branch may downsample."""
    require(1 <= x.rank <= 3)
    out, act = draft.pick((x.channels, x.channels, 6, 8)), draft.pick(ACTIVATIONS).lower()
    stride = draft.pick((1, 1, 2))
    first = draft.module(f"nn.Conv{x.rank}d({x.channels}, {out}, 3, stride={stride}, padding=1, bias=False)")
    norm = draft.module(f"nn.BatchNorm{x.rank}d({out})")
    second = draft.module(f"nn.Conv{x.rank}d({out}, {out}, 3, padding=1)")
    branch = draft.emit(f"{second}(F.{act}({norm}({first}({x}))))")
    shortcut = str(x)
    if branch.shape != x.shape:
        shortcut = f"{draft.module(f'nn.Conv{x.rank}d({x.channels}, {out}, 1, stride={stride})')}({x})"
    return draft.emit(f"F.{draft.pick((act, 'relu'))}({branch} + {shortcut})")


@step(weight=3)
def inverted_residual(draft: Draft, x: Value) -> Value:
    """Expand, depthwise, project, each with its norm; added when shapes allow."""
    require(1 <= x.rank <= 3)
    hidden, out = draft.pick((6, 8, 12)), draft.pick((x.channels, x.channels, 4))
    act = draft.pick(("ReLU6", "SiLU", "Hardswish"))
    rank = x.rank
    layers = (
        f"nn.Conv{rank}d({x.channels}, {hidden}, 1, bias=False), nn.BatchNorm{rank}d({hidden}), nn.{act}()",
        f"nn.Conv{rank}d({hidden}, {hidden}, 3, padding=1, groups={hidden}, bias=False)",
        f"nn.BatchNorm{rank}d({hidden}), nn.{act}()",
        f"nn.Conv{rank}d({hidden}, {out}, 1, bias=False), nn.BatchNorm{rank}d({out})",
    )
    code = f"nn.Sequential({', '.join(layers)})"
    branch = draft.emit(f"{draft.module(code)}({x})")
    return draft.emit(f"{x} + {branch}") if branch.shape == x.shape else branch


@step(weight=2)
def dense(draft: Draft, x: Value) -> Value:
    """DenseNet: norm, rectifier, conv; the result is appended to what came before."""
    require(1 <= x.rank <= 3)
    value = x
    for _ in range(draft.pick((1, 2, 3))):
        growth = draft.pick((2, 3))
        norm = draft.module(f"nn.BatchNorm{x.rank}d({value.channels})")
        conv = draft.module(f"nn.Conv{x.rank}d({value.channels}, {growth}, 3, padding=1, bias=False)")
        new = draft.emit(f"{conv}(F.relu({norm}({value})))")
        value = draft.emit(f"torch.cat([{value}, {new}], 1)")
    require(value.channels <= 24)
    return value


@step(weight=2)
def inception(draft: Draft, x: Value) -> Value:
    """Parallel branches of different kernels and a pool, concatenated."""
    require(1 <= x.rank <= 3)
    r, c = x.rank, x.channels
    one = draft.emit(f"F.relu({draft.module(f'nn.Conv{r}d({c}, {draft.pick((2, 4))}, 1)')}({x}))")
    three = draft.emit(f"{draft.module(f'nn.Conv{r}d({c}, {draft.pick((3, 4))}, 3, padding=1)')}({x})")
    projection = draft.module(f"nn.Conv{r}d({c}, 2, 1)")
    kind = draft.pick(("avg", "max"))
    pooled = draft.emit(f"{projection}(F.{kind}_pool{r}d({x}, 3, stride=1, padding=1))")
    return draft.emit(f"torch.cat([{one}, {three}, {pooled}], dim=1)")


@step(weight=2)
def convnext(draft: Draft, x: Value) -> Value:
    """Depthwise, LayerNorm channels-last, MLP, layer scale, residual."""
    require(x.rank == 2 and x.channels > 1)
    hidden = draft.pick((6, 8))
    depthwise = draft.module(f"nn.Conv2d({x.channels}, {x.channels}, 3, padding=1, groups={x.channels})")
    last = draft.emit(f"{depthwise}({x}).permute(0, 2, 3, 1)")
    normed = draft.emit(f"{draft.module(f'nn.LayerNorm({x.channels}, eps=1e-3)')}({last})")
    inner = draft.emit(f"F.gelu({draft.module(f'nn.Linear({x.channels}, {hidden})')}({normed}))")
    outer = draft.emit(f"{draft.module(f'nn.Linear({hidden}, {x.channels})')}({inner})")
    return draft.emit(f"{x} + ({draft.parameter(x.channels)} * {outer}).permute(0, 3, 1, 2)")


@step(weight=2)
def u_shape(draft: Draft, x: Value) -> Value:
    """Down by a strided conv, up by a transposed one, joined with what came in."""
    require(x.rank in (1, 2) and all(n % 2 == 0 for n in x.space))
    down = draft.module(f"nn.Conv{x.rank}d({x.channels}, 6, 3, stride=2, padding=1)")
    up = draft.module(f"nn.ConvTranspose{x.rank}d(6, {draft.pick((4, x.channels))}, 2, stride=2)")
    raised = draft.emit(f"{up}(F.relu({down}({x})))")
    if raised.shape == x.shape and draft.pick((True, False)):
        return draft.emit(f"{raised} + {x}")
    return draft.emit(f"torch.cat([{x}, {raised}], dim=1)")


@step(weight=2)
def module_list(draft: Draft, x: Value) -> Value:
    """Layers held in a ModuleList or ModuleDict and called in a loop."""
    require(x.rank == 2)
    conv = f"nn.Conv2d({x.channels}, {x.channels}, 3, padding=1)"
    if draft.pick((True, False)):
        layers = draft.module(f"nn.ModuleList([{conv}, {conv}])")
        return draft.block(f"OUT = {x}\nfor layer in {layers}:\n    OUT = OUT + F.relu(layer(OUT))")
    layers = draft.module(f"nn.ModuleDict({{'a': {conv}, 'b': {conv}}})")
    return draft.emit(f"{layers}['b'](F.relu({layers}['a']({x})))")
