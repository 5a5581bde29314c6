"""What onnxruntime makes of a file: the graph after its hardware-independent optimizations.

    file  →  nodes named  →  onnxruntime, extended optimizations  →  optimized graph

Extended optimizations fuse DequantizeLinear, operator and QuantizeLinear into integer kernels and keep the
names of the operators. The default of onnxruntime adds layout changes (NHWC, NCHWc): they insert Transpose
nodes, rename values and leave the integer arithmetic as it is, so they are left out here.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from fxcompress.errors import ExportError, first_line
from fxcompress.runtime.graphs import Graph, Node, layer_of, read_graph


@dataclass(frozen=True, eq=False)
class Optimized:
    """``source`` is the file's graph with every node named and ``named`` its protobuf; ``graph`` is what
    onnxruntime makes of it and ``model`` that as a protobuf."""

    path: Path
    source: Graph
    graph: Graph
    model: onnx.ModelProto
    named: onnx.ModelProto

    def origin(self, node: Node) -> Node | None:
        """The operator of the file that ``node`` of the optimized graph was made of."""
        names = self.source.by_name
        return names.get(node.name) or names.get(node.name.rpartition("/")[0])

    def layer(self, node: Node) -> str:
        """What a person calls ``node`` of the optimized graph."""
        origin = self.origin(node)
        return layer_of(origin, self.source) if origin else node.name or node.op


def optimize(path: str | os.PathLike[str]) -> Optimized:
    """Let onnxruntime optimize the file at ``path``.

    Raises:
        ExportError: if the file cannot be read or onnxruntime refuses it.
    """
    path = Path(path)
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise ExportError(
            f"cannot read {path}: {type(error).__name__}: {first_line(error)}\nExpected an ONNX file."
        ) from error
    _name_nodes(model)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimized.onnx"
        open_session(model, path.name, level="EXTENDED", save_to=written)
        optimized = onnx.load(str(written))
    return Optimized(path, read_graph(model), read_graph(optimized), optimized, model)


def _name_nodes(model: onnx.ModelProto) -> None:
    """Give a name of its own to every node: names are how a fused kernel is traced back."""
    taken = Counter(node.name for node in model.graph.node)
    used = set(taken)
    for position, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            name = f"{node.name or node.op_type}#{position}"
            while name in used:
                name += "'"
            node.name = name
            used.add(name)


def open_session(
    model: onnx.ModelProto, name: str, *, level: str = "ALL", save_to: Path | None = None
) -> Any:
    """A single-threaded session on the CPU; ``level`` is EXTENDED, ALL (the default) or DISABLE_ALL.

    Raises:
        ExportError: if onnxruntime refuses the model, called ``name``.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    prefix = "ORT_" if level == "DISABLE_ALL" else "ORT_ENABLE_"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, prefix + level)
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ExportError(
            f"onnxruntime cannot run {name}: {type(error).__name__}: {first_line(error)[:300]}\n"
            "Use standard operators of opset 18 to 21; only weights may have a scale for each channel."
        ) from error
