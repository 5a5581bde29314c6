"""The fusion lint: which operators of a QDQ file became integer kernels, and why the others did not.

    file, its optimized graph  →  for each operator on the way of the data: kernel, or reason and remedy

Operators are those of the file, named by their layer. Computations on shapes are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from fxcompress.runtime.dynamic import scaled, scales
from fxcompress.runtime.graphs import Node, layer_of
from fxcompress.runtime.integer import KERNELS, MOVERS, QUANTIZERS
from fxcompress.runtime.nbits import rounds_inputs
from fxcompress.runtime.optimized import Optimized, optimize
from fxcompress.runtime.quantizers import ACTIVATIONS
from fxcompress.runtime.reasons import Reason, explain, misread, requantization

_SHAPES = ("Shape", "Size")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_WITH_BIAS = {"QGemm": 6, "MatMulIntegerToFloat": 6, "DynamicQuantizeMatMul": 4, "MatMulNBits": 5}
"""Kernels with a float result → the position of the bias that they may hold."""
_FLOAT_RESULTS = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_NAMED = 3
"""Operators that are named beside the first of their kind; ``operators`` has all."""
_VANISHING = MOVERS | {"Cast", "Dropout"}


@dataclass(frozen=True)
class Operator:
    """One operator of the file. ``reason`` is ``None`` where it runs on integers."""

    layer: str
    node: str
    op: str
    kernel: str
    reason: Reason | None

    @property
    def integer(self) -> bool:
        """Whether it runs on integers."""
        return self.reason is None

    def __str__(self) -> str:
        name = self.layer if self.layer == self.node else f"{self.layer} ({self.node})"
        return f"{name}: {self.op} as {self.kernel}" + (f"; {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class Lint:
    """What onnxruntime makes of every operator of ``path``."""

    path: Path
    operators: tuple[Operator, ...]

    @property
    def all_integer(self) -> bool:
        """Whether every operator runs on integers."""
        return all(operator.integer for operator in self.operators)

    @property
    def floats(self) -> tuple[Operator, ...]:
        """The operators that run in float."""
        return tuple(operator for operator in self.operators if not operator.integer)

    def __str__(self) -> str:
        kernels = Counter(operator.kernel for operator in self.operators if operator.integer)
        count = f"{kernels.total()} of {len(self.operators)} operators run on integers"
        listed = ", ".join(f"{number} {kernel}" for kernel, number in sorted(kernels.items()))
        lines = [f"{self.path.name}: {count}" + (f" ({listed})" if listed else "")]
        return "\n".join([*lines, *self._told()])

    def _told(self) -> Iterator[str]:
        """The operators in float: of those of one type with one remedy the first, and which others."""
        alike: dict[tuple[str, str], list[Operator]] = {}
        for operator in self.floats:
            remedy = "" if operator.reason is None else operator.reason.remedy
            alike.setdefault((operator.op, remedy), []).append(operator)
        for (op, _), (first, *others) in alike.items():
            yield f"  {first}"
            if others:
                names = ", ".join(operator.layer for operator in others[:_NAMED])
                more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
                yield f"    likewise {len(others)} {op}: {names}{more}"


def lint(file: str | os.PathLike[str] | Optimized) -> Lint:
    """Look at ``file``: a path, or what ``optimize`` returned for it.

    Raises:
        ExportError: if the file cannot be read or onnxruntime refuses it.
    """
    optimized = file if isinstance(file, Optimized) else optimize(file)
    fates = _Fates(optimized)
    source = optimized.source
    operators = []
    for node in source.nodes:
        if node.op == "QuantizeLinear":
            if fates.requantizes(node):
                reason: Reason | None = requantization(node, source)
                operators.append(Operator(layer_of(node, source), node.name, "Requantize", "float", reason))
            continue
        if node.name not in fates.carriers or fates.merged(node):
            continue
        kernel, integer = fates.of(node)
        if kernel == "MatMulNBits" and node.op != kernel:
            continue  # its bias
        reason = misread(node, source) if integer else explain(node, source)
        operators.append(Operator(layer_of(node, source), node.name, node.op, kernel, reason))
    return Lint(optimized.path, tuple(operators))


class _Fates:
    """What became of each operator of the file."""

    def __init__(self, optimized: Optimized) -> None:
        self.source, self.graph = optimized.source, optimized.graph
        self.carriers = frozenset(_carriers(optimized))
        self._integers = _integer_values(optimized)
        self._made: dict[str, Node] = {}
        for node in optimized.graph.nodes:
            origin = optimized.origin(node)
            if origin is not None:
                self._made.setdefault(origin.name, node)

    def of(self, node: Node) -> tuple[str, bool]:
        """The kernel that computes ``node``, and whether it runs on integers."""
        made = self._made.get(node.name)
        if made is not None:
            moved = made.op in MOVERS and made.inputs[0] in self._integers
            return made.op, made.op in KERNELS or moved or rounds_inputs(made)
        if node.op in _VANISHING and node.op not in ACTIVATIONS:
            return "nothing (removed)", True
        before = next(self.source.sources(node), None)
        before = before and (scaled(before, self.source) or before)
        if before is None or before.op in QUANTIZERS or not self._merges(node, before):
            return node.op, False
        return self.of(before)

    def _merges(self, node: Node, before: Node) -> bool:
        """Whether the kernel of ``before`` can hold ``node``: a Relu or Clip, or a sum as its bias."""
        if node.op in ACTIVATIONS:
            return True
        made = self._made.get(before.name)
        return node.op == "Add" and made is not None and _holds_bias(made)

    def merged(self, node: Node) -> bool:
        """Whether ``node`` only brings the integers of a dynamic product to scale, and its kernel does so."""
        product = scaled(node, self.source)
        return node.name not in self._made and (scales(node, self.source) or product is not None)

    def requantizes(self, node: Node) -> bool:
        """Whether a QuantizeLinear of the file and of the optimized graph reads a DequantizeLinear."""
        pairs = []
        for graph in (self.source, self.graph):
            found = graph.by_name.get(node.name)
            before = graph.producers.get(found.inputs[0]) if found else None
            pairs.append(before is not None and before.op == "DequantizeLinear")
        return all(pairs)


def _holds_bias(made: Node) -> bool:
    return made.op in _WITH_BIAS and made.given(_WITH_BIAS[made.op]) is not None


def _carriers(optimized: Optimized) -> Iterator[str]:
    """The operators that give floats which depend on an input of the model."""
    graph = optimized.source
    kinds = _element_types(optimized.named)
    reached = set(graph.inputs)
    for node in graph.nodes:
        if node.op in _SHAPES or not reached.intersection(node.inputs):
            continue
        reached.update(node.outputs)
        if node.op in MOVERS and node.inputs[0] in graph.inputs:
            continue  # what comes in is float, wherever it is moved to
        floats = any(kinds.get(value, TensorProto.FLOAT) in _FLOATS for value in node.outputs if value)
        if node.op == "MatMulInteger" or (floats and node.op not in (*QUANTIZERS, "DynamicQuantizeLinear")):
            yield node.name


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """What shape inference knows, as ``TensorProto.DataType``."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type
    }


def _integer_values(optimized: Optimized) -> frozenset[str]:
    """The values of the optimized graph that are quantized."""
    kinds = (TensorProto.UINT8, TensorProto.INT8)
    found = {v.name for v in optimized.model.graph.input if v.type.tensor_type.elem_type in kinds}
    for node in optimized.graph.nodes:
        leaves = node.op in _FLOAT_RESULTS or (node.op == "QGemm" and node.given(7) is None)
        if (
            node.op == "QuantizeLinear"
            or (node.op in KERNELS and not leaves)
            or (node.op in MOVERS and node.inputs[0] in found)
        ):
            found.update(node.outputs)
    return frozenset(found)
