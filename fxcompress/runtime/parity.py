"""Does onnxruntime compute what the integer arithmetic says? Compared value by value on the same inputs.

    onnxruntime, every value exposed  ↔  each node of the interpreter, on the runtime's own inputs
    onnxruntime, default optimizations  →  outputs  ↔  the interpreter, from input to output

In a graph without float operators every value has to be equal bit by bit, and so have the outputs. Around
float operators each integer kernel may differ by one step on ``SHARE`` of its elements, and the outputs are
only reported: a flip grows on its way through later layers. Products of weights of few bits (``nbits``) are
sums of floats: they agree up to the order of these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from fxcompress.errors import ExportError, first_line
from fxcompress.runtime.arithmetic import Inputs
from fxcompress.runtime.graphs import Array, Node
from fxcompress.runtime.integer import Interpreter, has_reference
from fxcompress.runtime.nbits import differing, matmul_nbits, rounds_inputs
from fxcompress.runtime.optimized import Optimized, open_session, optimize

SHARE = 1e-4
"""Share of the elements of an integer kernel that may differ by one step, in a graph with float operators."""


@dataclass(frozen=True)
class Compared:
    """One value: ``mismatches`` of ``elements`` differ, by at most ``largest_step``.

    A step is 1 for integers and the distance of neighbouring numbers for float32.
    """

    layer: str
    kernel: str
    value: str
    elements: int
    mismatches: int
    largest_step: float

    def __str__(self) -> str:
        return (
            f"{self.layer} ({self.kernel}): {self.mismatches} of {self.elements} values of {self.value!r} "
            f"differ, by up to {self.largest_step:g} steps"
        )


@dataclass(frozen=True)
class RuntimeParity:
    """``nodes``: each integer kernel on the runtime's inputs. ``outputs``: the whole graph, from its inputs.
    ``floats``: the operators that onnxruntime runs in float, which nothing is compared with."""

    path: Path
    nodes: tuple[Compared, ...]
    outputs: tuple[Compared, ...]
    floats: tuple[str, ...]

    @property
    def all_integer(self) -> bool:
        """Whether no operator runs in float."""
        return not self.floats

    @property
    def elements(self) -> int:
        """How many values of integer kernels were compared."""
        return sum(node.elements for node in self.nodes)

    @property
    def mismatches(self) -> int:
        """How many of them differ."""
        return sum(node.mismatches for node in self.nodes)

    def __str__(self) -> str:
        wrong = sum(output.mismatches for output in self.outputs)
        total = sum(output.elements for output in self.outputs)
        return (
            f"{self.path.name}: {self.mismatches} of {self.elements} values of {len(self.nodes)} integer "
            f"kernels differ from exact arithmetic, {wrong} of {total} outputs; "
            f"{len(self.floats)} operators in float"
        )


def compare(path: str | os.PathLike[str], feeds: Mapping[str, Array]) -> RuntimeParity:
    """Compare onnxruntime with the interpreter on ``feeds``.

    Raises:
        ExportError: names the layer that breaks its bound, with the figures.
    """
    optimized = optimize(path)
    interpreter = Interpreter(optimized.graph)
    values = {**feeds, **_run_exposed(optimized, feeds)}
    nodes: list[Compared] = []
    floats: list[str] = []
    for node in optimized.graph.nodes:
        if has_reference(node, interpreter.inputs_of(node, values)):
            results = interpreter.step(node, values).items()
            nodes.extend(_compared(optimized, node, name, result, values[name]) for name, result in results)
        elif rounds_inputs(node):
            nodes.append(_in_blocks(optimized, node, interpreter.inputs_of(node, values), values))
            floats.append(optimized.layer(node))
        elif any(np.issubdtype(values[name].dtype, np.floating) for name in node.outputs if name):
            floats.append(optimized.layer(node))
    outputs = _outputs(optimized, interpreter.run(feeds), feeds)
    parity = RuntimeParity(Path(path), tuple(nodes), outputs, tuple(floats))
    _check(parity)
    return parity


def _run_exposed(optimized: Optimized, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every computed value of the optimized graph, as the runtime's kernels give it."""
    model = onnx.ModelProto()
    model.CopyFrom(optimized.model)
    names = list(optimized.graph.producers)
    listed = set(optimized.graph.outputs)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in listed)
    return _run(model, optimized.path.name, "DISABLE_ALL", names, feeds)


def _run(
    model: onnx.ModelProto, file: str, level: str, names: list[str], feeds: Mapping[str, Array]
) -> dict[str, Array]:
    session = open_session(model, file, level=level)
    expected = [item.name for item in session.get_inputs()]
    if sorted(expected) != sorted(feeds):
        raise ExportError(
            f"{file} takes the inputs {', '.join(expected)}; got {', '.join(feeds) or 'none'}\n"
            "Pass one array for each input, by its name."
        )
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:
        raise ExportError(
            f"onnxruntime fails on {file}: {type(error).__name__}: {first_line(error)[:400]}\n"
            "Check shapes and dtypes of the inputs, and the quantization axes of the weights (`lint`)."
        ) from error


def _in_blocks(optimized: Optimized, node: Node, inputs: Inputs, values: Mapping[str, Array]) -> Compared:
    """A product whose sums are floats: what differs by more than their order."""
    [name] = node.outputs
    wrong = differing(matmul_nbits(node, inputs), values[name])
    return Compared(optimized.layer(node), node.op, name, wrong.size, int(wrong.sum()), float(wrong.any()))


def _outputs(
    optimized: Optimized, values: Mapping[str, Array], feeds: Mapping[str, Array]
) -> tuple[Compared, ...]:
    """The file as a user runs it, against the interpreter from end to end."""
    names = [name for name in optimized.source.outputs if name in values]
    results = _run(optimized.named, optimized.path.name, "ALL", names, feeds)
    graph = optimized.graph
    return tuple(_compared(optimized, graph.producers[n], n, values[n], results[n]) for n in names)


def _compared(optimized: Optimized, node: Node, name: str, result: Array, runtime: Array) -> Compared:
    layer = optimized.layer(node)
    if result.shape != runtime.shape or result.dtype != runtime.dtype:
        raise ExportError(
            f"{optimized.path.name}: {layer} ({node.op}): onnxruntime gives "
            f"{runtime.dtype}{list(runtime.shape)}, the interpreter {result.dtype}{list(result.shape)} "
            f"for {name!r}\n"
            "The interpreter does not know this form of the operator: extend its kernel, or leave it out."
        )
    wrong = result != runtime
    if np.issubdtype(runtime.dtype, np.floating):
        wrong &= ~(np.isnan(result) & np.isnan(runtime))
    return Compared(
        layer, node.op, name, runtime.size, int(wrong.sum()), _largest_step(result[wrong], runtime[wrong])
    )


def _largest_step(result: Array, runtime: Array) -> float:
    if not result.size:
        return 0.0
    distance = np.abs(result.astype(np.float64) - runtime.astype(np.float64))
    if np.issubdtype(runtime.dtype, np.floating):
        distance = distance / np.spacing(np.maximum(np.abs(result), np.abs(runtime)))
    return float(distance.max())


def _check(parity: RuntimeParity) -> None:
    if parity.all_integer:
        broken = [item for item in (*parity.nodes, *parity.outputs) if item.mismatches]
        bound = "0, since no operator runs in float"
    else:
        broken = [n for n in parity.nodes if n.mismatches > SHARE * n.elements or n.largest_step > 1]
        bound = f"{SHARE:g} of the values, by one step"
    if broken:
        more = f"; {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ExportError(
            f"{parity.path.name}: {broken[0]}{more}; allowed: {bound}\n"
            "The interpreter has the arithmetic of onnxruntime on x86-64 with AVX2 and VNNI. Elsewhere u8 × "
            "s8 products may saturate: quantize weights to 7 bits or set session.x64quantprecision."
        )
