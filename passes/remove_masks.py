"""Remove masks: the model as it was before any, with the values its parameters have now.

    weight = self.conv.weight * self.conv.weight_mask      →      conv = self.conv(x)
    conv = ops.call(self.conv, x, weight=weight)

Law: the inverse of ``insert_masks``, of all masks of it: what the masks took part in is computed from
everything. ``bake_masks`` keeps the masked model's numbers, this pass gives the dense model's.
"""

from __future__ import annotations

from typing import cast

from torch import fx

from fxcompress import ops
from fxcompress.graph.module import CompiledModule, erase_unread
from fxcompress.passes.bake_masks import unmasked
from fxcompress.passes.insert_masks import mask_names
from fxcompress.rules.rewrite import plain_statistics


def remove_masks(module: CompiledModule) -> CompiledModule:
    """A fork of ``module`` without masks of parameters, activations or statistics; parameters are shared."""
    twin = module.fork(graph=unmasked(module.graph), compiled=False)
    for node in list(twin.graph.nodes):
        if "activation_mask" in node.meta:
            node.replace_all_uses_with(cast(fx.Node, node.args[0]))
            twin.graph.erase_node(node)
        elif node.target in ops.RESTRICTED.values():
            plain_statistics(node)
    erase_unread(twin.graph)
    for name in mask_names(module):
        owner, _, attribute = name.rpartition(".")
        del twin.get_submodule(owner)._buffers[attribute]
    twin.graph.lint()
    twin.recompile()
    return twin
