"""Operands of calls as nodes: a raised call (``self.conv(x)``) is lowered to one that says its parameters."""

from __future__ import annotations

from torch import Tensor, fx

from fxcompress import ops
from fxcompress.graph.calls import Aten, Attribute, Reference, TensorInfo, call_of, positions
from fxcompress.graph.module import CompiledModule, free_name, get_tensor


def read_tensor(module: CompiledModule, name: str, before: fx.Node) -> fx.Node:
    """A node in front of ``before`` that reads a parameter or buffer."""
    tensor = get_tensor(module, name)
    with module.graph.inserting_before(before):
        node = module.graph.create_node("get_attr", name, (), {})
    node.meta["tensor"] = TensorInfo(tuple(tensor.shape), tensor.dtype, (False,) * tensor.dim())
    return node


def add_buffer(module: CompiledModule, name: str, value: Tensor, before: fx.Node) -> fx.Node:
    """A node in front of ``before`` that reads a new buffer: ``name``, with a number where it is taken."""
    free = name if not hasattr(module, name) else free_name(module, name)
    module.register_buffer(free, value)
    return read_tensor(module, free, before)


def operand_node(module: CompiledModule, node: fx.Node, argument: str) -> fx.Node | None:
    """The node behind an argument of an operator call (``weight``); ``None`` if the call has no such tensor.

    A parameter that the called layer reads by itself is read by a node from here on.
    """
    call = call_of(node)
    value = None if call is None else call.get(argument)
    if isinstance(value, fx.Node):
        return value
    if not isinstance(value, Reference):
        return None
    read = next((n for n in node.all_input_nodes if n.op == "get_attr" and n.target == str(value)), None)
    if read is None:
        read = read_tensor(module, str(value), node)
        set_operand(module, node, argument, read)
    return read


def set_operand(module: CompiledModule, node: fx.Node, argument: str, value: fx.Node) -> None:
    """Let a call read ``value`` for ``argument``, also where it had none (a bias)."""
    if node.op == "call_module":
        with module.graph.inserting_before(node):
            owner = module.graph.create_node("get_attr", str(node.target), (), {})
        node.op, node.target, node.args = "call_function", ops.call, (owner, *node.args)
    if node.target is not ops.call:
        slot = positions(node.target)[argument]
        if argument in node.kwargs or slot >= len(node.args):
            node.kwargs = {**node.kwargs, argument: value}
        else:
            node.args = (*node.args[:slot], value, *node.args[slot + 1 :])
        return
    aten: Aten = node.meta["aten"]
    held = aten.args.get(argument)
    name = held.name if isinstance(held, Attribute) else argument
    node.meta["aten"] = Aten(aten.target, {**aten.args, argument: Attribute(name)})
    node.kwargs = {**node.kwargs, name: value}
