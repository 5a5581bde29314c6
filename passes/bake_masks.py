"""Bake masks: masked parameters become what their masks make of them.

    weight = self.conv.weight * self.conv.weight_mask      →      conv = self.conv(x)
    conv = ops.call(self.conv, x, weight=weight)

Law: an identity; but what was masked is zero for good, and nothing holds it there in training. The inverse of
``insert_masks`` for parameters; masks of activations and of statistics stay. Returns a fork, in which the
parameters that were masked are new ones.
"""

from __future__ import annotations

from torch import fx, nn

from fxcompress import ops
from fxcompress.graph.module import CompiledModule, copy_node, empty_twin, get_tensor


def bake_masks(module: CompiledModule, *, compiled: bool = True) -> CompiledModule:
    """A fork of ``module`` without masks of parameters. ``compiled``: see ``CompiledModule``."""
    twin = module.fork(graph=unmasked(module.graph), compiled=compiled)
    baked: dict[int, nn.Parameter] = {}
    for name in {node.meta["masked_parameter"]: None for node in _products(module.graph)}:
        owner, _, attribute = f"{name}_mask".rpartition(".")
        old, mask = get_tensor(twin, name), get_tensor(twin, f"{name}_mask")
        baked[id(old)] = nn.Parameter(old.detach() * mask, requires_grad=old.requires_grad)
        del twin.get_submodule(owner)._buffers[attribute]
    for child in twin.modules():  # under all names
        for attribute, parameter in child._parameters.items():
            child._parameters[attribute] = baked.get(id(parameter), parameter)
    return twin


def _products(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if "masked_parameter" in node.meta]


def unmasked(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph`` that reads parameters in place of their products with masks."""
    twin = empty_twin(graph)
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if "masked_parameter" in node.meta:
            value = node.args[0]
            if value in copies:
                copies[node] = copies[value]
        elif _masks_alone(node):
            owner, x = node.args
            copies[node] = twin.create_node("call_module", owner.target, (copies[x],), {}, node.name)
            copies[node].meta.update(node.meta)
        elif node.op != "get_attr" or any(_reads(user, node) for user in node.users):
            copies[node] = copy_node(twin, node, copies)
            copies[node].meta.pop("mask_source", None)
    return twin


def _reads(user: fx.Node, node: fx.Node) -> bool:
    """Whether ``user`` will still read ``node``: not the masks, and not what a layer has by itself."""
    if "masked_parameter" in user.meta:
        return node is user.args[0] and any(_reads(reader, user) for reader in user.users)
    return not _masks_alone(user) or node is user.args[1]


def _masks_alone(node: fx.Node) -> bool:
    """Whether a call has parameters of its layer replaced, all of them by their products with masks."""
    given = node.kwargs.values() if node.target is ops.call else [None]
    return all(isinstance(value, fx.Node) and "masked_parameter" in value.meta for value in given)
