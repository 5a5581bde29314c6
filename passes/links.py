"""Links: tensors between layers whose channels may be rescaled. An analysis; changes nothing.

    maker (convolution, linear layer, normalization)  →  ReLU, dropout, pooling, views, or nothing  →  readers

Law: ``rescale`` may divide the channels of a link by any positive factors. What clips at an upper end
(ReLU6) or bends (GELU, sigmoid) does not follow a factor, so there is no link across it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxcompress.graph.calls import Call, call_of, channel_dim
from fxcompress.graph.constants import Reading, constant, is_masked
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.shapes import info
from fxcompress.rules.contraction import WeightedRule
from fxcompress.rules.registry import rule_for

ELEMENTWISE = frozenset(
    {
        *("relu", "relu_", "leaky_relu", "leaky_relu_", "alias", "clone", "contiguous", "detach"),
        *("dropout", "feature_dropout", "fxcompress.dropout"),
    }
)
"""``f(x / s) = f(x) / s`` for every ``s > 0``, number by number."""
POOLING = frozenset(
    {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}
)
"""The same for every slice of the dimensions that they do not pool."""
RESHAPING = frozenset({"reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"})
"""The same where the channels stay one dimension."""
PERMUTING = frozenset({"transpose", "permute"})
"""The same: the channels are elsewhere."""
CLIPPING = frozenset({"relu6", "hardtanh", "clamp", "clamp_", "clamp_max", "hardsigmoid", "hardswish"})
NORMS = frozenset({"layer_norm", "rms_norm"})


@dataclass(frozen=True)
class Link:
    """What ``maker`` yields, with ``channels`` slices; ``readers``, and they alone, read it."""

    maker: fx.Node
    readers: tuple[fx.Node, ...]
    channels: int

    def __str__(self) -> str:
        return f"{label(self.maker)} → {', '.join(map(label, self.readers))}"


def label(node: fx.Node) -> str:
    """The layer that a node calls, or its own name."""
    call = call_of(node)
    return node.name if call is None or call.module is None else call.module


def weighted(node: fx.Node) -> tuple[Call, WeightedRule] | None:
    """The call of a convolution or linear layer with its rule; ``None`` of any other node."""
    call = call_of(node)
    found = None if call is None else rule_for(call)
    return (call, found) if call is not None and isinstance(found, WeightedRule) else None


def activation(call: Call) -> fx.Node | None:
    """What a convolution or linear layer works on."""
    value = call.get("mat1" if call.op == "addmm" else "input")
    return value if isinstance(value, fx.Node) else None


def maker_of(reader: fx.Node) -> fx.Node | None:
    """What made the values that a layer works on, in front of the operators that follow a factor."""
    found = weighted(reader)
    node = None if found is None else activation(found[0])
    while node is not None:
        call = call_of(node)
        if call is None or call.op not in ELEMENTWISE | POOLING | RESHAPING | PERMUTING:
            break
        node = node.all_input_nodes[0]
    return node


def operands_to_divide(module: CompiledModule, maker: fx.Node) -> tuple[str, ...]:
    """The arguments of a maker that its result is proportional to together; none if it is no maker."""
    call, found, facts = call_of(maker), weighted(maker), info(maker)
    if call is None or facts is None:
        return ()
    if found is not None:
        return tuple(name for name in (found[1].weight, found[1].bias) if call.get(name) is not None)
    if call.op in NORMS and call.get("weight") is not None and len(call.args["normalized_shape"]) == 1:
        return tuple(name for name in ("weight", "bias") if call.get(name) is not None)
    if call.op == "mul":  # the end of a normalization that the model spells out
        for name in ("self", "other"):
            value = constant(module, call.get(name))
            if (
                value is not None
                and value.shape[-1:] == facts.shape[-1:]
                and value.numel() == value.shape[-1]
            ):
                return (name,)
    return ()


def link_behind(module: CompiledModule, maker: fx.Node, reading: Reading) -> Link | str:
    """The link that begins at the output of ``maker``, or the reason why there is none."""
    names, found, facts = operands_to_divide(module, maker), weighted(maker), info(maker)
    if not names or facts is None:
        return f"{label(maker)} in front of it has no weight to rescale"
    rank = len(facts.shape)
    dim = rank - 1 if found is None else channel_dim(found[0], rank)
    readers: list[fx.Node] = []
    for reader in _readers(maker, dim):
        if isinstance(reader, str):
            return reader
        readers.append(reader)
    for node in (maker, *readers):
        layer = weighted(node)
        held = names if node is maker else (layer[1].weight,) if layer is not None else ()
        for name in held:
            reason = obstacle(module, node, name, reading)
            if reason is not None:
                return reason
    return Link(maker, tuple(readers), facts.shape[dim]) if readers else "nothing reads it"


def _readers(node: fx.Node, dim: int) -> Iterator[fx.Node | str]:
    """The layers that read channels (dimension ``dim``) of ``node``; or a reason why they are no link."""
    rank = len(_shape(node))
    for user in node.users:
        call, found = call_of(user), weighted(user)
        if call is None:
            yield "it is an output of the model"
        elif found is not None and activation(call) is node and channel_dim(call, rank) == dim:
            yield user
        elif call.op in ELEMENTWISE or (call.op in POOLING and dim < rank - int(call.op[-2])):
            yield from _readers(user, dim)
        elif call.op in RESHAPING and (there := _place(_shape(node), dim, _shape(user))) is not None:
            yield from _readers(user, there)
        elif call.op in PERMUTING:
            yield from _readers(user, _permuted(call, dim, rank))
        elif call.op in CLIPPING:
            yield f"{label(user)} ({call.op}) clips at an upper end, which does not follow a factor"
        else:
            yield f"{label(user)} ({call.op}) reads it; its result does not follow factors of channels"


def _shape(node: fx.Node) -> tuple[int, ...]:
    facts = info(node)
    return () if facts is None else facts.shape


def _place(shape: tuple[int, ...], dim: int, reshaped: tuple[int, ...]) -> int | None:
    """Where dimension ``dim`` is after reshaping: as many slices, as many numbers behind each."""
    inner = math.prod(shape[dim + 1 :])
    places = (d for d, size in enumerate(reshaped) if size == shape[dim])
    return next((d for d in places if math.prod(reshaped[d + 1 :]) == inner), None)


def _permuted(call: Call, dim: int, rank: int) -> int:
    """Where dimension ``dim`` is after permuting."""
    order = list(range(rank))
    if call.op == "permute":
        order = [d % rank for d in call.args["dims"]]
    else:
        a, b = call.args["dim0"] % rank, call.args["dim1"] % rank
        order[a], order[b] = b, a
    return order.index(dim)


def obstacle(module: CompiledModule, node: fx.Node, argument: str, reading: Reading) -> str | None:
    """Why the weight or bias of a call cannot take a factor; ``None`` if it can."""
    call = call_of(node)
    value = None if call is None else call.get(argument)
    if is_masked(value):
        return f"the {argument} of {label(node)} is masked: speed the model up first"
    if constant(module, value) is None:
        return f"the {argument} of {label(node)} is computed or rounded already"
    if reading.is_shared(value, node):
        return f"the {argument} of {label(node)} is shared with other calls"
    return None
