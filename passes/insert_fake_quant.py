"""Insert fake-quantize nodes: round weights and activations where the deployed integer kernels will.

    y = conv(x)    →    y = ops.call(conv, fake_quantize(x, q_x), weight=fake_quantize(conv.weight, q_w))

Law: with quantizers that do not round, the module computes what it computed. Which tensors are rounded, and
how, is told (``fxcompress.quantization`` chooses). Edits in place; quantizers become submodules of
``module.fake_quant``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from fxcompress import ops
from fxcompress.errors import PassError
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import operand_node

CONTAINER = "fake_quant"
"""The submodule that holds the quantizers."""


PASSING = frozenset(
    {
        *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "upsample_nearest2d"),
        *("reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "contiguous", "clone"),
        *("permute", "transpose", "t", "mT", "movedim", "swapaxes", "slice", "select", "narrow", "getitem"),
        *("chunk", "split", "split_with_sizes", "unbind", "alias", "detach"),
        *("dropout", "feature_dropout", "fxcompress.dropout"),
    }
)
"""Operators whose results are values of their operand: they keep its grid."""


@dataclass(frozen=True)
class Rounded:
    """A value to round: what ``node`` yields, or its operand ``argument``.

    ``readers``: the calls that read the rounded value; all of them where it is ``None``.
    """

    node: fx.Node
    argument: str | None = None
    readers: tuple[fx.Node, ...] | None = None


def insert_fake_quant(module: CompiledModule, places: Mapping[str, tuple[Rounded, nn.Module]]) -> None:
    """Insert fake-quantize nodes.

    Args:
        places: name of the quantizer → the value it rounds, and the quantizer itself.

    Raises:
        PassError: if there is nothing to round at a place, or its name is taken.
    """
    if not hasattr(module, CONTAINER):
        module.add_module(CONTAINER, nn.Module())
    container = module.get_submodule(CONTAINER)
    for name, (place, quantizer) in places.items():
        if hasattr(container, name):
            raise PassError(f"fake-quantize node {name!r}: the model is quantized there already")
        container.add_module(name, quantizer.train(module.training))
        if place.argument is None:
            source, readers = place.node, place.readers
        else:
            operand = operand_node(module, place.node, place.argument)
            if operand is None:
                raise PassError(f"{place.node}: no operand {place.argument!r} to quantize")
            source, readers = operand, (place.node,)
        _insert(module, source, readers, f"{CONTAINER}.{name}")
    module.graph.lint()
    module.recompile()


def quantizers(module: CompiledModule) -> dict[str, nn.Module]:
    """The quantizers of ``module`` by name."""
    container = dict(module.named_children()).get(CONTAINER)
    return {} if container is None else dict(container.named_children())


def quantizer_name(node: fx.Node) -> str:
    """The name of the quantizer by which a fake-quantize node rounds."""
    return str(node.all_input_nodes[-1].target).rpartition(".")[2]


def rounded_by(value: object) -> str | None:
    """The name of the quantizer that rounded a value, perhaps in front of operators that passed it on."""
    while isinstance(value, fx.Node):
        if value.target is ops.fake_quantize:
            return quantizer_name(value)
        call = call_of(value)
        if call is None or call.op not in PASSING or not value.all_input_nodes:
            return None
        value = value.all_input_nodes[0]
    return None


def _insert(
    module: CompiledModule, source: fx.Node, readers: Sequence[fx.Node] | None, quantizer: str
) -> fx.Node:
    graph = module.graph
    with graph.inserting_after(_last_sibling(source)):
        owner = graph.create_node("get_attr", quantizer, (), {})
    with graph.inserting_after(owner):
        rounded = graph.call_function(ops.fake_quantize, (source, owner))
    rounded.meta["tensor"] = source.meta["tensor"]
    for user in list(source.users):
        if user is not rounded and (readers is None or user in readers):
            user.replace_input_with(source, rounded)
    return rounded


def _last_sibling(node: fx.Node) -> fx.Node:
    """Placeholders stay together in front."""
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    return node
