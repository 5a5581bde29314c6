"""Gates and learned scales: squeeze-excite, GLU, layer scale, offsets, gates that may be zero."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import require, step


@step(weight=4)
def squeeze_excite(draft: Draft, x: Value) -> Value:
    """Channel attention with 1×1 convolutions or with Linear layers."""
    require(1 <= x.rank <= 3)
    hidden, gate = draft.pick((2, 3, 4)), draft.pick(("sigmoid", "hardsigmoid", "tanh", "softplus"))
    if draft.pick((True, False)):
        pooled = draft.emit(f"{draft.module(f'nn.AdaptiveAvgPool{x.rank}d(1)')}({x})")
        first = draft.module(f"nn.Conv{x.rank}d({x.channels}, {hidden}, 1)")
        second = draft.module(f"nn.Conv{x.rank}d({hidden}, {x.channels}, 1)")
        weights = draft.emit(f"F.{gate}({second}(F.relu({first}({pooled}))))")
    else:
        pooled = draft.emit(f"{x}.mean({tuple(range(2, x.rank + 2))})")
        first = draft.module(f"nn.Linear({x.channels}, {hidden})")
        second = draft.module(f"nn.Linear({hidden}, {x.channels}, bias=False)")
        ones = ", 1" * x.rank
        weights = draft.emit(f"F.{gate}({second}(F.relu({first}({pooled})))).view(-1, {x.channels}{ones})")
    return draft.emit(
        draft.pick(("{x} * {w}", "{x} * {w}.expand_as({x})", "{x} + {x} * {w}")).format(x=x, w=weights)
    )


@step(weight=2)
def glu(draft: Draft, x: Value) -> Value:
    require(x.channels % 2 == 0)
    if draft.pick((True, False)):
        return draft.emit(draft.pick((f"F.glu({x}, dim=1)", f"{draft.module('nn.GLU(dim=1)')}({x})")))
    left, right = draft.emit_several(f"{x}.chunk(2, dim=1)", 2)
    return draft.emit(
        draft.pick(("{a} * {b}.sigmoid()", "{a} * F.gelu({b})", "{a} * {b}")).format(a=left, b=right)
    )


@step(weight=3)
def scale(draft: Draft, x: Value) -> Value:
    """A learned scale, offset, or both, per channel."""
    shape = (x.channels, *[1] * x.rank)
    weight = draft.parameter(*draft.pick((shape, (1, *shape), (1,), shape)))
    code = draft.pick(("{x} * {w}", "{x} + {w}", "{x} * {w} + {w}", "{w} * {x}", "{x} / ({w}.abs() + 0.5)"))
    return draft.emit(code.format(x=x, w=weight))


@step(weight=1)
def position_map(draft: Draft, x: Value) -> Value:
    """A learned map over channels and space, as position embeddings are."""
    require(1 <= x.rank <= 2)
    draft.flags.add("fixed size")
    return draft.emit(
        f"{x} + {draft.parameter(*draft.pick(((1, *x.shape[1:]), x.shape[1:], (1, *x.space))))}"
    )


@step(weight=1)
def buffer_constants(draft: Draft, x: Value) -> Value:
    """Fixed mean and deviation per channel, as input normalization has; not parameters."""
    name = f"mean{draft._count}"
    draft.statement(
        f"self.register_buffer('{name}', torch.linspace(-0.5, 0.5, {x.channels}, dtype=torch.float64)"
        f".view(-1{', 1' * x.rank}))",
        f"self.{name}",
    )
    return draft.emit(f"({x} - self.{name}) / 0.8")


@step(weight=2)
def zero_gate(draft: Draft, x: Value) -> Value:
    """A product with a gate that a rectifier may close."""
    gate = draft.parameter(x.channels, *[1] * x.rank)
    code = draft.pick(
        ("{x} * {g}.relu()", "{x} * F.relu({g} - 0.2)", "{x} * ({g} > 0.1111)", "{x} * 0.0 + {g}")
    )
    return draft.emit(code.format(x=x, g=gate))


@step(weight=1)
def convolved_gate(draft: Draft, x: Value) -> Value:
    """Gated convolution: one conv's sigmoid times another conv."""
    require(1 <= x.rank <= 3)
    out = draft.pick((4, 3, 6))
    first, second = (draft.module(f"nn.Conv{x.rank}d({x.channels}, {out}, 3, padding=1)") for _ in "ab")
    return draft.emit(
        f"{draft.pick(('torch.tanh', 'F.relu', ''))}({first}({x})) * torch.sigmoid({second}({x}))"
    )
