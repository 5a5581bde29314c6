"""The quantizers around an operator of a QDQ graph: which values are quantized, and how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fxcompress.runtime.graphs import Array, Graph, Node, layer_of

ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Quantizer:
    """Scale, zero point and integers of one QuantizeLinear or DequantizeLinear.

    ``scale`` is ``None`` where it is computed by the graph; ``constant`` says that the integers are stored.
    """

    scale: Array | None
    zero: Array
    dtype: np.dtype[Any]
    axis: int
    blocked: bool
    constant: bool

    @property
    def bits(self) -> int:
        """Width of the integers."""
        return int(_bits(self.dtype))

    def same(self, other: Quantizer) -> bool:
        """Whether both give the same integers to the same numbers."""
        if self.scale is None or other.scale is None or self.dtype != other.dtype:
            return False
        return np.array_equal(self.scale.ravel(), other.scale.ravel()) and np.array_equal(
            self.zero.ravel(), other.zero.ravel()
        )

    def reach(self) -> tuple[float, float]:
        """The smallest and the largest number it represents, for one scale."""
        assert self.scale is not None
        limits, zero = np.iinfo(self.dtype), int(self.zero.reshape(-1)[0])
        step = float(self.scale.reshape(-1)[0])
        return (int(limits.min) - zero) * step, (int(limits.max) - zero) * step

    def __str__(self) -> str:
        if self.scale is None or self.scale.size != 1:
            return str(self.dtype)
        step, zero = float(self.scale.reshape(())), int(self.zero.reshape(()))
        return f"{self.dtype}, scale {step:.6g}, zero point {zero}"


def _bits(dtype: np.dtype[Any]) -> int:
    """numpy has no 4-bit integers; the types that stand for them carry the width in their name."""
    digits = "".join(c for c in dtype.name if c.isdigit())
    return int(digits) if digits else dtype.itemsize * 8


@dataclass(frozen=True, eq=False)
class Site:
    """An operator with the quantizers around it. ``dtypes`` are the element types known by inference."""

    node: Node
    graph: Graph

    def before(self, position: int) -> Quantizer | None:
        """The DequantizeLinear behind input number ``position``."""
        name = self.node.given(position)
        source = self.graph.producers.get(name) if name else None
        return read_quantizer(source, self.graph) if source and source.op == "DequantizeLinear" else None

    @cached_property
    def readers(self) -> tuple[Node, ...]:
        """Who reads the outputs, once for each output."""
        return tuple(self.graph.readers(self.node))

    @cached_property
    def is_output(self) -> bool:
        """Whether the model returns an output of the operator."""
        return any(value in self.graph.outputs for value in self.node.outputs)

    @cached_property
    def behind(self) -> tuple[Quantizer, ...]:
        """The quantizers that read the outputs."""
        return tuple(read_quantizer(node, self.graph) for node in self.readers if node.op == "QuantizeLinear")

    @cached_property
    def activation(self) -> Node | None:
        """The Relu or Clip that alone reads the output."""
        if len(self.readers) == 1 and self.readers[0].op in ACTIVATIONS and not self.is_output:
            return self.readers[0]
        return None

    def describe(self, position: int) -> str:
        """Where input number ``position`` comes from."""
        name = self.node.inputs[position]
        source = self.graph.producers.get(name)
        if source is not None:
            return f"{source.op} ({layer_of(source, self.graph)})"
        return f"the {'constant' if name in self.graph.constants else 'model input'} {name!r}"


def read_quantizer(node: Node, graph: Graph) -> Quantizer:
    """The parameters of a QuantizeLinear or DequantizeLinear."""
    stored = graph.constants.get(node.inputs[0])
    zero_name = node.given(2)
    zero = graph.constants.get(zero_name) if zero_name else None
    if zero is None:
        zero = np.zeros((), np.uint8 if stored is None or node.op == "QuantizeLinear" else stored.dtype)
    return Quantizer(
        graph.constants.get(node.inputs[1]),
        zero,
        zero.dtype,
        int(node.attributes.get("axis", 1)),
        bool(node.attributes.get("block_size", 0)),
        stored is not None,
    )
