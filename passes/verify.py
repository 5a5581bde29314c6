"""Verification: a graph lints and re-infers, and two models are one function.

Law: ``verify`` returns only if both models give the same outputs in eval mode, in float64, on the given
inputs. Nothing is changed.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from fxcompress.errors import PassError, SpeedupError
from fxcompress.graph.calls import TensorInfo
from fxcompress.graph.inputs import Inputs
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.graph.precision import float64_copy, relative_difference, to_float64

TOLERANCE = 1e-9
"""Relative to the output's largest magnitude, in float64."""


def tolerance(module: CompiledModule) -> float:
    """What rounding a folded bias to the parameters' dtype may cost:
    100 units in the last place of the coarsest.
    """
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    return max([TOLERANCE, *(100 * torch.finfo(d).eps for d in dtypes if d != torch.float64)])


def check_graph(module: CompiledModule, passes: tuple[str, ...] = ()) -> None:
    """Lint the graph and re-infer every shape and dtype from the example inputs, without computing.

    Args:
        passes: names of the passes that ran, for the message.

    Raises:
        PassError: with the ten graph lines around the first node that fails.
    """
    after = f"after {' → '.join(passes)}: " if passes else ""
    try:
        module.graph.lint()
    except RuntimeError as error:
        raise PassError(f"{after}the graph does not lint: {error}") from error
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    args, kwargs = module.example_inputs
    with eval_mode(module), mode, torch.no_grad():
        flat = pytree.tree_leaves((args, kwargs))
        fake = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in flat]
        with contextlib.suppress(_DependsOnValuesError):
            _Inferring(module, after).run(*fake, enable_io_processing=False)


class _DependsOnValuesError(Exception):
    """A shape depends on tensor values: nothing behind it can be inferred without computing."""


class _Inferring(fx.Interpreter):
    def __init__(self, module: CompiledModule, after: str) -> None:
        super().__init__(module)
        self._after = after

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except (DataDependentOutputException, DynamicOutputShapeException):
            raise _DependsOnValuesError from None
        except Exception as error:
            raise PassError(f"{self._after}{n} does not run: {error}\n{graph_lines(n)}") from error
        expected = n.meta.get("tensor")
        if isinstance(expected, TensorInfo) and isinstance(result, Tensor):
            static = all(
                got == want
                for got, want, free in zip(result.shape, expected.shape, expected.dynamic, strict=False)
                if not free
            )
            # The module may have been moved to another precision since it was captured.
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
    before: CompiledModule, after: CompiledModule, inputs: Inputs, *, tolerance: float = TOLERANCE
) -> float:
    """Compare two models in eval mode and float64 on ``inputs``; returns the largest relative difference.

    Raises:
        SpeedupError: if it exceeds ``tolerance``.
    """
    args, kwargs = to_float64(inputs)
    outputs = []
    for module in (before, after):
        twin = float64_copy(module).eval()
        with torch.no_grad():
            outputs.append(twin(*args, **kwargs))
        del twin
    difference = relative_difference(outputs[1], outputs[0])
    if not difference <= tolerance:
        raise SpeedupError(
            f"the small model differs from the masked one by {difference:.3g} relative to the largest output "
            f"(allowed {tolerance:g}, float64). This is a bug in a rule of fxcompress; nothing was returned. "
            "Please report the model; excluding the layers around the operators in report.kept may avoid it."
        )
    return difference
