"""Where the time of a forward pass goes: seconds per layer, two modules against each other.

    seconds of a layer in a round  =  Σ wall-clock time of the graph nodes that apply its weight

The graphs run node by node, in eager mode: what lies between two kernels (Python, allocation) counts as well,
so the sum is above the latency of the whole module. What applies no weight is booked under the node's name,
as ``count_macs`` does.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from inspect import signature
from typing import Any

import torch
from torch import fx

from fxcompress.graph.cost import Call, Latency, evaluating, layer_of


def compare_layer_latency(
    modules: Mapping[str, fx.GraphModule], call: Call, *, rounds: int = 10, warmup: int = 2
) -> dict[str, dict[str, Latency]]:
    """Time every layer of the modules in eval mode, one pass of each per round, the order alternating.

    Args:
        modules: name → module.
        call: ``(args, kwargs)`` that all of them accept.
        rounds: timed passes per module, after ``warmup`` untimed ones.

    Returns:
        Name of the module → name of the layer → seconds per round.
    """
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in modules}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for module in modules.values():
            stack.enter_context(evaluating(module))
        order = list(modules.items())
        for index in range(-warmup, rounds):
            for name, module in order if index % 2 == 0 else reversed(order):
                seconds = _TimingInterpreter(module).seconds_of(call)
                if index >= 0:
                    for layer, elapsed in seconds.items():
                        found[name][layer].append(elapsed)
    return {name: {k: Latency(tuple(v)) for k, v in layers.items()} for name, layers in found.items()}


class _TimingInterpreter(fx.Interpreter):
    """Runs a graph once and books the time of each node on the layer that owns its weight."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._root = module
        self._seconds: dict[str, float] = defaultdict(float)
        self._synchronize = torch.cuda.is_available()

    def seconds_of(self, call: Call) -> Mapping[str, float]:
        """Run ``call``; layer → seconds."""
        args, kwargs = call
        bound = signature(self._root.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        self.run(*bound.args, *bound.kwargs.values())
        return self._seconds

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_module", "call_function", "call_method"):
            return super().run_node(n)
        start = time.perf_counter()
        result = super().run_node(n)
        if self._synchronize:
            torch.cuda.synchronize()
        self._seconds[layer_of(n)] += time.perf_counter() - start
        return result
