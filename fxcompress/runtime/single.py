"""One operator run by onnxruntime itself, without optimizations: what float islands are computed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

from fxcompress.runtime.graphs import Array
from fxcompress.runtime.optimized import open_session

_IR_VERSION = 10


def run_operator(op: str, inputs: Sequence[Array], opset: int = 18) -> list[Array]:
    """A standard operator without attributes on ``inputs``."""
    names = [f"i{i}" for i in range(len(inputs))]
    return run_node(
        helper.make_node(op, names, ["o"]), dict(zip(names, inputs, strict=True)), {}, {"": opset}
    )


def run_node(
    proto: onnx.NodeProto,
    values: Mapping[str, Array],
    constants: Mapping[str, Array],
    opsets: Mapping[str, int],
) -> list[Array]:
    """The outputs of one node; ``constants`` are those of its inputs that kernels may want to know early."""
    given = {name: values[name] for name in proto.input if name and name not in constants}
    kept = [name for name in dict.fromkeys(proto.input) if name in constants]
    outputs = [name for name in proto.output if name]
    graph = helper.make_graph(
        [proto],
        "node",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(constants[name], name) for name in kept],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    results: list[Array] = open_session(model, f"node {proto.name}", level="DISABLE_ALL").run(outputs, given)
    return results
