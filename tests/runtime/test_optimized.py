"""The optimized graph can be traced back to the file's nodes and layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fxcompress.errors import ExportError
from fxcompress.runtime.graphs import layer_of, read_graph
from fxcompress.runtime.optimized import open_session, optimize
from tests.runtime.building import Builder


def two_sums(build: Builder) -> str:
    value = build.qdq(build.input(("n", 4)))
    for _ in range(2):
        value = build.qdq(build.op("Add", value, value))
    return value


@pytest.mark.parametrize("name", ["", "same"])
def test_nodes_without_a_name_of_their_own_get_one(name: str, tmp_path: Path) -> None:
    build = Builder()
    path = build.save(tmp_path / "m.onnx", two_sums(build))
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.name = name
    onnx.save(model, str(path))
    optimized = optimize(path)
    sums = [node for node in optimized.graph.nodes if node.op == "QLinearAdd"]
    assert [optimized.origin(node).op for node in sums] == ["Add", "Add"]  # type: ignore[union-attr]
    assert len({optimized.layer(node) for node in sums}) == 2
    assert [node.name for node in onnx.load(str(path)).graph.node] == [name] * 8, "the file stays as it is"


def test_optimized_graphs_have_no_layout_changes(tmp_path: Path) -> None:
    build = Builder()
    path = build.save(
        tmp_path / "m.onnx", build.qdq(build.conv(build.qdq(build.input((1, 4, 8, 8))), [4, 4]))
    )
    assert [n.op for n in optimize(path).graph.nodes] == ["QuantizeLinear", "QLinearConv", "DequantizeLinear"]


def test_layers_are_found_by_the_exporters_notes_the_weight_or_the_node() -> None:
    build = Builder()
    value = build.qdq(build.input((1, 4, 8, 8)))
    weight, _ = build.weight([4, 4, 3, 3], "features.3.conv")
    noted = build.op("Conv", value, weight, name="node_a")
    build.nodes[-1].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'block', 'block.1', 'conv']"
    )
    plain = build.op("Conv", value, weight, name="node_b")
    stored = build.constant(np.ones((4, 4, 3, 3), np.float32), "head.weight")
    unquantized = build.op("Conv", value, stored, name="node_c")
    bare = build.op("Add", plain, unquantized, name="node_d")
    graph = read_graph(build.model(noted, bare))
    names = {node.name: layer_of(node, graph) for node in graph.nodes if node.name.startswith("node")}
    assert names == {"node_a": "block.1", "node_b": "features.3.conv", "node_c": "head", "node_d": "node_d"}


def test_files_that_onnxruntime_cannot_read_or_run_are_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot read .*missing.onnx: .*\nExpected an ONNX file"):
        optimize(tmp_path / "missing.onnx")
    build = Builder()
    path = build.save(tmp_path / "m.onnx", build.op("NoSuchOperator", build.input((1, 2))))
    with pytest.raises(
        ExportError, match=r"onnxruntime cannot run m.onnx: .*NoSuchOperator.*\nUse standard operators"
    ):
        optimize(path)


def test_values_of_constant_nodes_are_constants() -> None:
    build = Builder()
    three = build.op("Constant", value_float=3.0)
    model = build.model(build.op("Mul", build.input((1, 2)), three))
    graph = read_graph(model)
    assert [node.op for node in graph.nodes] == ["Mul"]
    assert graph.constants[three] == 3.0
    [result] = open_session(model, "m").run(None, {"x": np.ones((1, 2), np.float32)})
    assert result.tolist() == [[3.0, 3.0]]
