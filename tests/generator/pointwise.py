"""Pointwise functions: every torch.nn activation, in place or not, PReLU, functional and tensor methods.

All are kept smooth enough (`log(1 + |x|)` rather than `log(x)`) that round-off of 1e-16 stays round-off.
Discontinuous ones (comparisons, rounding, shrinking) have thresholds that random values do not hit.
"""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, require, step

MODULES = (
    "ReLU()", "ReLU6()", "Sigmoid()", "Tanh()", "GELU()", "GELU(approximate='tanh')", "SiLU()", "Hardswish()",
    "Hardsigmoid()", "LeakyReLU(0.2)", "ELU(0.7)", "SELU()", "CELU(1.3)", "Mish()", "Softplus()",
    "Softplus(beta=2.0, threshold=5.0)", "Softsign()", "LogSigmoid()", "Tanhshrink()", "Hardtanh(-0.7, 0.9)",
    "Hardshrink(0.313)", "Softshrink(0.2)", "Threshold(0.1234, -0.3)", "RReLU(0.1, 0.3)", "Identity()",
)  # fmt: skip
IN_PLACE = (
    "ReLU(inplace=True)", "ReLU6(inplace=True)", "SiLU(inplace=True)", "Hardswish(inplace=True)",
    "LeakyReLU(0.1, inplace=True)", "ELU(inplace=True)", "SELU(inplace=True)", "CELU(inplace=True)",
    "Mish(inplace=True)", "Hardtanh(inplace=True)", "Hardsigmoid(inplace=True)",
    "Threshold(0.1234, 0.2, inplace=True)",
)  # fmt: skip
FUNCTIONS = (
    "torch.relu({x})", "torch.exp({x} * 0.3)", "torch.sin({x})", "torch.cos({x})", "torch.abs({x})",
    "{x}.abs()",
    "torch.sigmoid({x})", "{x}.sigmoid()", "torch.tanh({x})", "{x}.tanh()", "{x}.clamp(-0.6, 0.8)",
    "torch.clamp({x}, min=0.2)", "{x}.clamp(max=0.4)", "{x}.pow(2)", "{x} ** 3 * 0.1", "{x}.square()",
    "torch.sqrt({x}.abs() + 0.1)", "torch.rsqrt({x} * {x} + 0.5)", "torch.log({x}.abs() + 1.0)",
    "torch.log1p({x} * {x})", "torch.expm1({x} * 0.2)", "torch.reciprocal({x}.abs() + 0.5)",
    "torch.atan({x})",
    "torch.erf({x})", "torch.neg({x})", "-{x}", "torch.rsub({x}, 1.5)", "1.5 - {x}", "{x} + 0.7", 
    "0.3 + {x} * 2",
    "{x} - 0.25", "{x} / 3.0", "1.0 / ({x}.exp() + 1.0)", "torch.add({x}, 0.4, alpha=2)",
    "torch.mul({x}, 0.6)",
    "torch.where({x} > 0.1234, {x}, 0.1 * {x})", "torch.where({x} < -0.2345, torch.zeros_like({x}), {x})",
    "({x} > 0.1357) * {x}", "({x} >= 0.2468).to({x}.dtype)", "{x}.masked_fill({x} < 0.1111, -0.4)",
    "torch.maximum({x}, torch.zeros_like({x}) - 0.3)", "torch.minimum({x}, torch.ones_like({x}))",
    "torch.sign({x} - 0.1717)", "torch.floor({x} * 1.37 + 0.123)", "torch.remainder({x}, 1.71)",
    "F.relu({x})", "F.relu6({x})", "F.gelu({x})", "F.silu({x})", "F.hardswish({x})", "F.hardsigmoid({x})",
    "F.leaky_relu({x}, 0.15)", "F.elu({x})", "F.softplus({x})", "F.mish({x})", "F.logsigmoid({x})",
    "F.softsign({x})", "F.tanhshrink({x})", "F.hardtanh({x})", "F.threshold({x}, 0.1234, 0.5)",
    "{x}.clone()", "{x}.contiguous()", "torch.nan_to_num({x})", "{x}.type_as({x})",
    "torch.full_like({x}, 0.3) * {x}", "torch.ones_like({x}) - {x}", "torch.special.expit({x})", "{x}.relu()",
    "torch.lerp({x}, {x}.relu(), 0.3)", "torch.addcmul({x}, {x}, {x}, value=0.1)",
    "torch.hypot({x}, {x} + 1.0)",
)  # fmt: skip
METHODS_IN_PLACE = (
    "{x}.relu_()", "F.relu({x}, inplace=True)", "{x}.sigmoid_()", "{x}.add_(0.3)", "{x}.mul_(0.8)",
    "{x}.clamp_(-0.5, 0.9)", "torch.relu_({x})", "{x}.tanh_()", "{x}.sub_(0.2)", "{x}.div_(1.5)",
)  # fmt: skip


@step(weight=10, reads=ANY)
def activation(draft: Draft, x: Value) -> Value:
    return draft.emit(f"{draft.module(f'nn.{draft.pick(MODULES)}')}({x})")


@step(weight=7, reads=ANY)
def function(draft: Draft, x: Value) -> Value:
    # Two knobs, so that the long table is reached evenly.
    row = draft.pick(range(0, len(FUNCTIONS), 8))
    return draft.emit(draft.pick(FUNCTIONS[row : row + 8]).format(x=x))


@step(weight=2)
def prelu(draft: Draft, x: Value) -> Value:
    options = draft.pick(("", f"{x.channels}", "init=0.1"))
    return draft.emit(f"{draft.module(f'nn.PReLU({options})')}({x})")


@step(weight=3, reads=ANY)
def activation_in_place(draft: Draft, x: Value) -> Value:
    out = draft.emit(f"{draft.module(f'nn.{draft.pick(IN_PLACE)}')}({x})")
    draft.values.remove(x)
    return out


@step(weight=2, reads=ANY)
def method_in_place(draft: Draft, x: Value) -> Value:
    out = draft.emit(draft.pick(METHODS_IN_PLACE).format(x=x))
    draft.values.remove(x)
    return out


@step(weight=2)
def softmax(draft: Draft, x: Value) -> Value:
    """Over channels, over one spatial axis, or over all of space."""
    if x.rank == 0:
        return draft.emit(f"{x}.softmax(dim=1)")
    options = (
        f"torch.softmax({x}, dim=1)",
        f"{x}.softmax(dim=-1)",
        f"F.softmax({x}.flatten(2), dim=2).view({x}.shape)",
        f"F.log_softmax({x}, dim=1)",
        f"{draft.module('nn.Softmax(dim=1)')}({x})",
        f"{draft.module('nn.Softmin(dim=2)')}({x})",
    )
    return draft.emit(draft.pick(options))


@step(weight=1)
def softmax_2d(draft: Draft, x: Value) -> Value:
    require(x.rank == 2)
    return draft.emit(f"{draft.module('nn.Softmax2d()')}({x})")


@step(weight=1)
def cumulative(draft: Draft, x: Value) -> Value:
    """Along channels (couples them all) or along space."""
    return draft.emit(f"torch.cumsum({x}, dim={draft.pick((1, -1))})")
