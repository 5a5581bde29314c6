"""What a layer's channels meet on their way: the norm, the activation behind a convolution."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from torch import fx

from fxcompress.graph.calls import Call, call_of
from fxcompress.pruning.layers import Layer
from fxcompress.rules.flow import Flow


def next_call(flow: Flow, layer: Layer, operators: Collection[str]) -> tuple[Call, int] | None:
    """The nearest call of one of ``operators`` that the layer's output channels pass through unchanged, and
    the dimension they have there. The search goes on along nodes that share the layer's channel axis.
    """
    channels = layer.outputs.find()
    queue: deque[fx.Node] = deque([layer.call.node])
    seen = {layer.call.node}
    while queue:
        node = queue.popleft()
        for user in node.users:
            if user in seen or user.op == "output":
                continue
            seen.add(user)
            axes = [axis.find() for axis in flow.map.of.get(user, ())]
            if channels not in axes:
                continue
            call = call_of(user)
            if call is not None and call.op in operators:
                return call, axes.index(channels)
            queue.append(user)
    return None
