"""An ONNX graph as plain Python: nodes, constants, and who produces and consumes each value.

    ModelProto  →  Graph(nodes, constants, inputs, outputs)

Only what the lint and the interpreter ask for; subgraphs (If, Loop) stay inside their node's attributes.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

Array = npt.NDArray[Any]
_SCOPES = "pkg.torch.onnx.name_scopes"
_TENSOR_OF_LAYER = re.compile(r"^(?P<layer>.+)\.(?:weight|bias)(?:[_.].*)?$")


@dataclass(frozen=True, eq=False)
class Node:
    """One operator. ``domain`` is empty for standard operators; ``scope`` is the layer the exporter noted."""

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    scope: str
    proto: onnx.NodeProto

    def given(self, position: int) -> str | None:
        """The name of input number ``position``, ``None`` where it is left out."""
        return self.inputs[position] or None if position < len(self.inputs) else None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order; ``constants`` are initializers and the values of Constant nodes."""

    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node behind each computed value."""
        return {value: node for node in self.nodes for value in node.outputs if value}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by their name."""
        return {node.name: node for node in self.nodes}

    def readers(self, node: Node) -> Iterator[Node]:
        """The nodes that read an output of ``node``."""
        for value in node.outputs:
            yield from self.consumers.get(value, ())

    def sources(self, node: Node) -> Iterator[Node]:
        """The nodes that ``node`` reads, once for each input."""
        for value in node.inputs:
            if value in self.producers:
                yield self.producers[value]


def read_graph(model: onnx.ModelProto) -> Graph:
    """``model`` as a :class:`Graph`."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = []
    for proto in model.graph.node:
        attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
        if proto.op_type == "Constant" and len(attributes) == 1:
            [constants[proto.output[0]]] = map(np.asarray, attributes.values())
            continue
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        nodes.append(
            Node(
                proto.name,
                proto.op_type,
                domain,
                tuple(proto.input),
                tuple(proto.output),
                attributes,
                _scope(proto),
                proto,
            )
        )
    return Graph(
        tuple(nodes),
        constants,
        tuple(v.name for v in model.graph.input if v.name not in constants),
        tuple(v.name for v in model.graph.output),
        {entry.domain: entry.version for entry in model.opset_import},
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value


def _scope(proto: onnx.NodeProto) -> str:
    """The deepest module of the exporter's ``['', 'layer1', 'layer1.conv', 'conv2d']``."""
    for entry in proto.metadata_props:
        if entry.key == _SCOPES:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def layer_of(node: Node, graph: Graph) -> str:
    """The layer of ``node``, by the exporter's notes or the name of its weight; else the node's own name."""
    if node.scope:
        return node.scope
    for value in node.inputs:
        source = graph.producers.get(value)
        names = [value] if source is None or source.op != "DequantizeLinear" else [source.inputs[0], value]
        for name in names:
            match = _TENSOR_OF_LAYER.match(name)
            if match and (name in graph.constants or source is not None):
                return match["layer"]
    return node.name
