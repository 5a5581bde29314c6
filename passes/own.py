"""Own: an operand of a call becomes a parameter that only the compressed module has.

    y = conv(x, weight=w · s, bias=b)    →    y = conv(x, weight=w', bias=b)        self.conv.weight = w'

Law: the call reads the value it is given; the model that the module was captured from, which shares its
parameters, keeps its own. An optimizer that holds the old parameter does not train the new one.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from fxcompress.errors import PassError
from fxcompress.graph.calls import Aten, Attribute, Reference, call_of
from fxcompress.graph.module import CompiledModule, free_name, get_tensor, set_tensor
from fxcompress.graph.operands import read_tensor, set_operand


def own(module: CompiledModule, node: fx.Node, argument: str, value: Tensor) -> str:
    """Let the call of ``node`` read ``value`` for ``argument``, also where it had none (a bias).

    Nobody else may read that operand. The caller recompiles the module.

    Returns:
        The qualified name of the parameter.

    Raises:
        PassError: if ``node`` calls no operator.
    """
    call = call_of(node)
    if call is None:
        raise PassError(f"{node}: no operator, so it has no operand {argument!r}")
    held = call.get(argument)
    if isinstance(held, Reference):
        old = get_tensor(module, held)
        trains = not isinstance(old, nn.Parameter) or old.requires_grad
        is_buffer = not isinstance(old, nn.Parameter)
        set_tensor(module, held, value if is_buffer else nn.Parameter(value, requires_grad=trains))
        return str(held)
    if call.module is None:
        name = free_name(module, f"{node.name}_{argument}")
        module.register_parameter(name, nn.Parameter(value))
    else:
        name = f"{call.module}.{argument}"
        set_tensor(module, name, nn.Parameter(value))
    if held is None and call.module is not None:
        aten: Aten = node.meta["aten"]
        node.meta["aten"] = Aten(aten.target, {**aten.args, argument: Attribute(argument)})
    else:
        set_operand(module, node, argument, read_tensor(module, name, node))
    return name
