"""One set of weights at several places: layers called again, loops, tied weights, sums of both."""

from __future__ import annotations

from tests.generator.convolution import remember
from tests.generator.draft import Draft, Value
from tests.generator.linear import from_last, to_last
from tests.generator.registry import require, step


@step(weight=3)
def call_again(draft: Draft, x: Value) -> Value:
    """An earlier layer on another value with as many channels."""
    fitting = [
        layer for layer in reversed(draft.layers) if layer[2] == x.channels and layer[1] in (x.rank, -1)
    ]
    name, rank, _ = draft.pick(fitting)
    if rank == -1 and x.rank:
        return draft.emit(from_last(f"{name}({to_last(x)})", x.rank))
    return draft.emit(f"{name}({x})")


@step(weight=2)
def loop(draft: Draft, x: Value) -> Value:
    """The same layer applied several times in a row."""
    require(x.rank in (0, 1, 2))
    layer = f"nn.Conv{x.rank}d({x.channels}, {x.channels}, 3, padding=1)" if x.rank else ""
    name = remember(draft, draft.module(layer or f"nn.Linear({x.channels}, {x.channels})"), x)
    body = draft.pick(
        ("torch.relu({l}(OUT))", "{l}(OUT)", "OUT + torch.tanh({l}(OUT))", "torch.sigmoid({l}(OUT))")
    )
    return draft.block(f"OUT = {x}\nfor _ in range({draft.pick((2, 3))}):\n    OUT = {body.format(l=name)}")


@step(weight=2)
def tied(draft: Draft, x: Value) -> Value:
    """Two layers that share a weight but not a bias."""
    require(x.rank in (0, 2))
    out = draft.pick((x.channels, 4, 6))
    code = f"nn.Conv2d({x.channels}, {out}, 3, padding=1)" if x.rank else f"nn.Linear({x.channels}, {out})"
    first, second = draft.module(code), draft.module(code)
    draft.statement(f"{second}.weight = {first}.weight", second)
    left, right = draft.emit(f"{first}({x})"), draft.emit(f"{second}(F.relu({x}))")
    return draft.emit(
        draft.pick(("{a} + {b}", "torch.cat([{a}, {b}], 1)", "{a} * {b}")).format(a=left, b=right)
    )


@step(weight=1)
def tied_autoencoder(draft: Draft, x: Value) -> Value:
    """Encoder and decoder with one weight, transposed."""
    require(x.rank == 0)
    layer = draft.module(f"nn.Linear({x.channels}, {draft.pick((4, 6))})")
    code = draft.emit(f"F.{draft.pick(('relu', 'sigmoid'))}({layer}({x}))")
    return draft.emit(f"F.linear({code}, {layer}.weight.t(), {draft.parameter(x.channels)})")


@step(weight=1)
def same_norm_twice(draft: Draft, x: Value) -> Value:
    """One BatchNorm and one activation module for two convolutions."""
    require(x.rank == 2)
    norm, act = draft.module("nn.BatchNorm2d(6)"), draft.module(f"nn.{draft.pick(('ReLU', 'Sigmoid'))}()")
    first = draft.emit(f"{act}({norm}({draft.module(f'nn.Conv2d({x.channels}, 6, 3, padding=1)')}({x})))")
    return draft.emit(f"{act}({norm}({draft.module('nn.Conv2d(6, 6, 1)')}({first})))")
