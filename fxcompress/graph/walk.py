"""Walk a graph node by node on many batches at once, so that what comes first can change what follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxcompress.graph.inputs import Inputs, leaves_of, naming_sizes
from fxcompress.graph.module import CompiledModule


class Walk:
    """What the nodes of ``order`` yield on each of ``batches``; of what no later node reads nothing is kept.

    All that is alive at a place of the graph is in memory for all batches.
    """

    def __init__(self, module: CompiledModule, order: Sequence[fx.Node], batches: Sequence[Inputs]) -> None:
        self._runs = [_run(module, batch) for batch in batches]
        self._batches, self._example = batches, module.example_inputs
        last = {source: node for node in order for source in node.all_input_nodes}
        self._done: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            self._done.setdefault(node, []).append(source)

    def values(self, node: fx.Node) -> list[Any]:
        """What ``node`` yielded, for each batch."""
        return [run.env[node] for run in self._runs]

    def step(self, node: fx.Node) -> None:
        """Compute ``node`` on every batch.

        Raises:
            FxcompressError: if a batch has other sizes than the model was captured with, and does not run.
        """
        for run, batch in zip(self._runs, self._batches, strict=True):
            with naming_sizes(batch, self._example):
                run.env[node] = run.run_node(node)
            for source in self._done.get(node, ()):
                del run.env[source]


def _run(module: CompiledModule, batch: Inputs) -> fx.Interpreter:
    run = fx.Interpreter(module, garbage_collect_values=False)
    run.args_iter = iter(leaves_of(module.graph, batch))
    return run
