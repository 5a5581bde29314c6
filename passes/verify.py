"""Verification: a graph lints, its nodes yield what they say, and two models are one function.

Law: ``verify`` returns only if both models give the same outputs in eval mode, in float64, on the given
inputs. Nothing is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.errors import PassError, SpeedupError
from fxcompress.graph.calls import TensorInfo
from fxcompress.graph.inputs import Inputs, copied, leaves_of
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.graph.precision import Float64, relative_difference

TOLERANCE = 1e-9
"""Relative to the output's largest magnitude, in float64."""


def tolerance(module: CompiledModule) -> float:
    """What rounding a folded bias to the parameters' dtype may cost:
    100 units in the last place of the coarsest.
    """
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return max([TOLERANCE, *(100 * torch.finfo(d).eps for d in dtypes if d != torch.float64)])


def check_graph(module: CompiledModule, inputs: Inputs, passes: tuple[str, ...] = ()) -> list[Any]:
    """Lint the graph and run it in eval mode and float64; every tensor must have the shape and kind its node
    says.

    Args:
        passes: names of the passes that ran, for the message.

    Returns:
        The leaves of the output.

    Raises:
        PassError: with the ten graph lines around the first node that fails.
    """
    after = f"after {' → '.join(passes)}: " if passes else ""
    try:
        module.graph.lint()
    except RuntimeError as error:
        raise PassError(f"{after}the graph does not lint: {error}") from error
    return _run(_Checked(module, after), inputs)


def _run(runner: Float64, inputs: Inputs) -> list[Any]:
    """The leaves of what ``runner`` makes of the inputs of its module, in eval mode."""
    leaves = leaves_of(runner.graph, inputs)
    with eval_mode(runner.module), torch.no_grad():
        return pytree.tree_leaves(runner.run(*leaves, enable_io_processing=False))


class _Checked(Float64):
    def __init__(self, module: CompiledModule, after: str) -> None:
        super().__init__(module)
        self._after = after

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:
            raise PassError(f"{self._after}{n} does not run: {error}\n{graph_lines(n)}") from error
        expected = n.meta.get("tensor")
        if isinstance(expected, TensorInfo) and isinstance(result, Tensor):
            static = all(
                got == want
                for got, want, free in zip(result.shape, expected.shape, expected.dynamic, strict=False)
                if not free
            )
            same_kind = result.is_floating_point() == expected.dtype.is_floating_point
            if not static or len(result.shape) != len(expected.shape) or not same_kind:
                raise PassError(
                    f"{self._after}{n} yields {tuple(result.shape)} {result.dtype}, "
                    f"expected {expected.shape} {expected.dtype}\n{graph_lines(n)}"
                )
        return result


def graph_lines(node: fx.Node, around: int = 5) -> str:
    """The lines of the graph around a node, the node marked."""
    nodes = list(node.graph.nodes)
    at = nodes.index(node)
    lines = [
        ("-> " if n is node else "   ") + n.format_node()
        for n in nodes[max(at - around, 0) : at + around]
        if n.op != "root" and n.format_node()
    ]
    return "\n".join(lines)


def verify(
    before: CompiledModule,
    after: CompiledModule,
    inputs: Inputs,
    *,
    tolerance: float = TOLERANCE,
    passes: tuple[str, ...] = (),
) -> float:
    """Compare two models in eval mode and float64 on ``inputs``; returns the largest relative difference.

    Raises:
        PassError: if the graph of ``after`` does not lint, or a node does not run or yields another shape
            than it says; ``passes`` are named as those that led there.
        SpeedupError: if the difference exceeds ``tolerance``.
    """
    expected = _run(Float64(before), copied(inputs))
    got = check_graph(after, copied(inputs), passes)
    difference = relative_difference(got, expected)
    if not difference <= tolerance:
        raise SpeedupError(
            f"the small model differs from the masked one by {difference:.3g} relative to the largest output "
            f"(allowed {tolerance:g}, float64). This is a bug in a rule of fxcompress; nothing was returned. "
            "Please report the model; excluding the layers around the operators in report.kept may avoid it."
        )
    return difference
