"""Observers: look at values as they pass, without changing them.

    y = relu(x)      →      y = relu(x);  ops.observe(y, self._observer_0)

Law: the module computes what it computed; ``remove_observers`` gives back the graph there was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fxcompress import ops
from fxcompress.graph.module import CompiledModule, free_name

Look = Callable[[Tensor], None]


class Observer(nn.Module):
    """Calls a function on every tensor that passes; with ``training``, on those of training only."""

    def __init__(self, look: Look, *, training: bool) -> None:
        super().__init__()
        self._look = look
        self._training_only = training

    def forward(self, x: Tensor) -> None:
        """Show ``x``. Training is where gradients are enabled: parts of a model may train in eval mode."""
        if torch.is_grad_enabled() or not self._training_only:
            with torch.no_grad():
                self._look(x)


def insert_observers(
    module: CompiledModule, places: Mapping[str, tuple[str, Look]], *, training: bool = False
) -> None:
    """Show the value of a node, every time it is computed.

    Args:
        places: any key → name of the node, and the function that is called with its value (detached).
        training: show what is computed with gradients enabled only.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    for name, look in places.values():
        node = nodes[name]
        attribute = free_name(module, "_observer")
        module.add_module(attribute, Observer(look, training=training))
        with module.graph.inserting_after(node):
            owner = module.graph.create_node("get_attr", attribute, (), {})
        with module.graph.inserting_after(owner):
            module.graph.call_function(ops.observe, (node, owner))
    module.graph.lint()
    module.recompile()


def remove_observers(module: CompiledModule) -> None:
    """Take all observers out again."""
    for node in module.graph.find_nodes(op="call_function", target=ops.observe):
        source, owner = node.args
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)
        module.graph.erase_node(owner)
        delattr(module, owner.target)
    module.graph.lint()
    module.recompile()
