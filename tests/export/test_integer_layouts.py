"""Random first convolutions: every layout that export gives them yields the same integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from fxcompress.export import amx
from fxcompress.export.stem import rewrite_stems
from fxcompress.runtime.optimized import open_session
from tests.runtime.networks import needs_vnni

small = st.integers(0, 3)


@dataclass(frozen=True)
class Case:
    """A quantized convolution; ``size`` and ``kernel`` are rows and columns."""

    channels: int
    out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    bias: bool
    activation: str | None
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly what stems look like: few channels, whole blocks of columns, padding that keeps the size."""
    kernel = draw(st.tuples(st.integers(1, 7), st.integers(1, 8)))
    columns = draw(st.one_of(st.integers(2, 6).map(lambda n: 4 * n), st.integers(8, 17)))
    top, left = kernel[0] // 2, kernel[1] // 2
    pads = draw(st.one_of(st.just((top, left, top, left)), st.tuples(small, small, small, small)))
    return Case(
        channels=draw(st.sampled_from([1, 2, 3, 3, 4])),
        out=draw(st.sampled_from([1, 3, 8, 36])),
        size=(draw(st.integers(8, 15)), columns),
        kernel=kernel,
        strides=draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 2, 3, 4]))),
        pads=pads,
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from([None, "Relu", "Clip"])),
        seed=draw(st.integers(0, 9)),
    )


def network(case: Case) -> onnx.ModelProto:
    """The convolution between quantizers, as export writes it: with this scale a Clip at 6 is fused."""
    random = np.random.default_rng(case.seed)
    weight = random.integers(-127, 128, (case.out, case.channels, *case.kernel), dtype=np.int8)
    scales = random.uniform(0.005, 0.02, case.out).astype(np.float32)
    zero_point = np.uint8(random.integers(0, 256))
    held: dict[str, Any] = {
        "xs": np.float32(0.02), "xz": zero_point, "ys": np.float32(6 / 255),
        "w": weight, "ws": scales, "wz": np.zeros(case.out, np.int8),
        "yz": np.uint8(0 if case.activation else 120), "low": np.float32(0),
        "high": np.float32(6), "b": random.integers(-5000, 5000, case.out, dtype=np.int32),
        "bs": np.float32(0.02) * scales, "bz": np.zeros(case.out, np.int32),
    }  # fmt: skip
    kernel, strides, pads = map(list, (case.kernel, case.strides, case.pads))
    conv: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    conv |= {"dilations": [1, 1], "group": 1, "auto_pad": "NOTSET"}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", *(["bd"] if case.bias else [])], ["c"], **conv),
    ]
    bounds = ["low", "high"] if case.activation == "Clip" else []
    if case.activation:
        nodes.append(helper.make_node(case.activation, ["c", *bounds], ["a"]))
    nodes += [
        helper.make_node("QuantizeLinear", ["a" if case.activation else "c", "ys", "yz"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", case.channels, *case.size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


@needs_vnni
@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_layout_yields_the_same_integers(case: Case) -> None:
    plain = network(case)
    images = np.random.default_rng(case.seed).normal(0, 2, (3, case.channels, *case.size)).astype(np.float32)
    (truth,) = open_session(plain, "plain").run(None, {"x": images})
    model = ir.serde.deserialize_model(plain)
    rewrite_stems(model)
    for_stems = ir.serde.serialize_model(model)
    with mock.patch.multiple(amx, _FEWEST_PRODUCTS=1, _FEWEST_CHANNELS=1):
        assert amx.prefer_amx(model) == 1
    for written in (for_stems, ir.serde.serialize_model(model)):
        onnx.checker.check_model(written)
        (found,) = open_session(written, "rewritten").run(None, {"x": images})
        np.testing.assert_array_equal(found, truth)
