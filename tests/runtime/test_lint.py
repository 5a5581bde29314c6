"""The fusion lint: one graph for each reason, the smallest that shows it; graphs that fuse are clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from fxcompress.runtime.lint import Lint, Operator, lint
from fxcompress.runtime.reasons import Reason
from tests.runtime.building import Builder, Shape
from tests.runtime.networks import Convolutions, Encoder, quantized

IMAGE: Shape = ("n", 4, 8, 8)
Made = str | tuple[str, ...]
Make = Callable[[Builder], Made]


def look(make: Make, folder: Path) -> Lint:
    build = Builder()
    made = make(build)
    outputs = (made,) if isinstance(made, str) else made
    return lint(build.save(folder / "m.onnx", *outputs, opset=21))


def image(build: Builder, zero: int = 128, dtype: Any = np.uint8) -> str:
    return build.qdq(build.input(IMAGE), zero=zero, dtype=dtype)


def conv(build: Builder, **params: Any) -> str:
    return build.conv(image(build, **params), [4, 4])


def relu_between(build: Builder) -> str:
    return build.qdq(build.op("Relu", build.qdq(conv(build)), name="act"), zero=0)


def clip(build: Builder, scale: float, low: float = 0.0) -> str:
    limits = [build.constant(np.float32(limit)) for limit in (low, 6)]
    return build.qdq(build.op("Clip", conv(build), *limits, name="act"), scale=scale, zero=0)


def with_float(build: Builder) -> str:
    value = build.input(IMAGE)
    return build.qdq(build.op("Add", build.qdq(value), build.op("Exp", value, name="exp"), name="sum"))


def only_weight(build: Builder) -> str:
    weight, _ = build.weight([4, 4, 3, 3])
    return build.qdq(build.op("Conv", build.input(IMAGE), weight))


def also_read(build: Builder) -> Made:
    value = conv(build)
    return build.qdq(value), build.op("Exp", value, name="exp")


def also_returned(build: Builder) -> Made:
    value = conv(build)
    return build.qdq(value), value


def two_quantizers(build: Builder) -> Made:
    value = conv(build)
    return build.qdq(value), build.qdq(value, 0.03)


def requantized(build: Builder) -> Made:
    value = build.qdq(conv(build))
    return build.qdq(value, 0.03), value


def int4_weight(build: Builder) -> str:
    stored = build.constant(np.ones((4, 4, 3, 3), ml_dtypes.int4), "layer.weight")
    weight = build.op("DequantizeLinear", stored, build.constant(np.float32(0.1)))
    return build.qdq(build.op("Conv", image(build), weight))


def signed_constant(build: Builder) -> str:
    half = build.dq(build.constant(np.int8(100)), 0.005, 0, np.int8)
    return build.qdq(build.op("Add", image(build), half, name="sum"))


def signed_twice(build: Builder) -> str:
    value = image(build, 0, np.int8)
    return build.qdq(build.op("Add", value, value, name="sum"), 0.05, 0, np.int8)


def gemm(build: Builder, *, bias: bool, leave: bool = True) -> str:
    value = build.qdq(build.input(("n", 8)))
    weight, scales = build.weight([3, 8])
    given = build.bias(scales) if bias else build.constant(np.ones(3, np.float32))
    made = build.op("Gemm", value, weight, given, transB=1)
    return made if leave else build.qdq(made)


def matmul(build: Builder, batch: int | str, axis: int = 1, *, bias: bool = True, leave: bool = True) -> str:
    value = build.qdq(build.input((batch, 5, 8)))
    made = build.op("MatMul", value, build.weight([8, 8], axis=axis)[0])
    if bias:
        made = build.op("Add", made, build.constant(np.ones(8, np.float32)), name="sum")
    return made if leave else build.qdq(made)


def wrong_conv_axis(build: Builder) -> str:
    return build.qdq(build.op("Conv", image(build), build.weight([4, 4, 3, 3], axis=1)[0]))


def wrong_gemm_axis(build: Builder) -> str:
    value = build.qdq(build.input(("n", 8)))
    return build.op("Gemm", value, build.weight([8, 8], axis=1)[0], transB=1)


def many_scales(build: Builder, *, behind: bool) -> str:
    scales, zeros = build.constant(np.full(4, 0.1, np.float32)), build.constant(np.zeros(4, np.uint8))

    def many(value: str) -> str:
        stored = build.op("QuantizeLinear", value, scales, zeros, axis=1)
        return build.op("DequantizeLinear", stored, scales, zeros, axis=1)

    return many(conv(build)) if behind else build.qdq(build.conv(many(build.input(IMAGE)), [4, 4]))


def resized(build: Builder, mode: str) -> str:
    value = build.qdq(build.input((1, 4, 8, 8)))
    sizes = build.constant(np.array([1, 1, 2, 2], np.float32))
    return build.qdq(build.op("Resize", value, "", sizes, mode=mode, name="grow"))


def unary(op: str, scale: float = 0.02, **attributes: Any) -> Make:
    return lambda b: b.qdq(b.op(op, image(b), name="layer", **attributes), scale)


def four_bits_behind(build: Builder) -> str:
    zero = build.constant(np.zeros((), ml_dtypes.uint4))
    return build.op("QuantizeLinear", build.op("Relu", conv(build)), build.constant(np.float32(0.1)), zero)


REASONS: dict[str, tuple[Make, str, str, str]] = {
    "4 bits behind Relu": (four_bits_behind, "layer", "it is quantized to uint4", "use 8 bits"),
    "scales behind": (
        lambda b: many_scales(b, behind=True),
        "layer",
        "has several scales",
        "one constant scale",
    ),
    "scales in front": (
        lambda b: many_scales(b, behind=False),
        "layer",
        "has several scales",
        "one constant",
    ),
    "batched weight": (
        lambda b: b.op("MatMul", b.qdq(b.input((2, 5, 8))), b.weight([2, 8, 4], axis=2)[0]),
        "layer",
        "axis 2 of 3; the integer kernel",
        "one scale for the weight",
    ),
    # graph, layer, reason, remedy
    "nothing behind Conv": (
        conv,
        "layer",
        "no quantizer stands behind it: it is an output",
        "quantize its output",
    ),
    "nothing behind Concat": (
        lambda b: b.op("Concat", image(b), image(b), axis=1, name="layer"),
        "layer",
        "no quantizer stands behind it",
        "quantize its output",
    ),
    "nothing between": (
        lambda b: b.qdq(b.op("LeakyRelu", conv(b), name="act")),
        "layer",
        "no quantizer stands behind it: it is read by LeakyRelu (act)",
        "quantize its output",
    ),
    "float operand": (with_float, "sum", "operand 1 (from Exp (exp)) is float", "quantize (QuantizeLinear"),
    "float constant": (
        lambda b: b.qdq(b.op("Mul", image(b), b.constant(np.float32(3), "three"), name="layer")),
        "layer",
        "operand 1 (from the constant 'three') is float",
        "store integers behind DequantizeLinear",
    ),
    "only the weight": (only_weight, "layer", "only the weight is quantized", "quantize the input too"),
    "symmetric before Relu": (
        lambda b: b.qdq(b.op("Relu", conv(b, zero=0, dtype=np.int8)), zero=0, dtype=np.int8),
        "layer",
        "the Relu behind it (relu5) stays: the quantizer behind it (int8, scale 0.02, zero point 0) starts",
        "use unsigned integers with zero point 0",
    ),
    "zero point of Relu": (
        lambda b: b.qdq(b.op("Relu", conv(b), name="act")),
        "act",
        "the quantizer behind it (uint8, scale 0.02, zero point 128) starts at -2.56, Relu at 0",
        "use unsigned integers with zero point 0",
    ),
    "both sides of Relu": (
        relu_between,
        "act",
        "quantizers stand on both sides of Relu",
        "remove the one in front",
    ),
    "scale of Clip": (
        lambda b: clip(b, 7 / 255),
        "act",
        "reaches up to 7, Clip ends at 6",
        "use a scale of at most 6/255 there",
    ),
    "lower limit of Clip": (
        lambda b: clip(b, 6 / 255, 1.0),
        "act",
        "starts at 0, Clip at 1",
        "let it start at 1",
    ),
    "other scale behind MaxPool": (
        unary("MaxPool", 0.03, kernel_shape=[2, 2]),
        "layer",
        "it only hands numbers on, but is quantized as uint8, scale 0.02, zero point 128 in front and uint8, "
        "scale 0.03, zero point 128 behind",
        "use the quantizer in front behind it as well",
    ),
    "float Reshape": (
        lambda b: b.op("Reshape", b.op("Exp", image(b)), b.constant(np.array([0, -1])), name="layer"),
        "layer",
        "it hands on float numbers: operand 0 (from Exp (exp2)) is not quantized",
        "nothing: it follows its neighbours",
    ),
    "two readers": (
        also_read,
        "layer",
        "its float output is read by a quantizer and by Exp (exp)",
        "let every reader take the dequantized value",
    ),
    "returned": (also_returned, "layer", "a quantizer and by the model's output", "let every reader take"),
    "two quantizers": (two_quantizers, "layer", "2 quantizers read its output", "share one quantizer"),
    "in a row": (
        requantized,
        "quantizelinear7",
        "two quantizers follow each other: uint8, scale 0.02, zero point 128 and uint8, scale 0.03",
        "share one quantizer",
    ),
    "16 bits": (
        lambda b: b.qdq(conv(b, dtype=np.uint16), dtype=np.uint16),
        "layer",
        "it is quantized to uint16",
        "use 8 bits",
    ),
    "4 bits": (int4_weight, "layer", "it is quantized to int4", "use 8 bits"),
    "signed constant": (signed_constant, "sum", "it is quantized as int8 and uint8", "constants included"),
    "signed, two readers": (signed_twice, "sum", "it is quantized as int8, which", "use unsigned 8 bits"),
    "float bias": (
        lambda b: gemm(b, bias=False),
        "layer",
        "its bias is float and no quantizer stands behind it",
        "store the bias as int32 at scale s_x · s_w",
    ),
    "static MatMul": (
        lambda b: matmul(b, 2),
        "layer",
        "its shape is static, so onnxruntime merges it with the bias behind it into a Gemm",
        "leave the batch dynamic",
    ),
    "Conv weight axis": (
        wrong_conv_axis,
        "layer",
        "reads them along axis 0 and gives wrong numbers",
        "axis 0",
    ),
    "Gemm weight axis": (
        wrong_gemm_axis,
        "layer",
        "reads them along axis 0 and gives wrong numbers",
        "axis 0",
    ),
    "MatMul weight axis": (
        lambda b: matmul(b, "n", 0, bias=False),
        "layer",
        "one scale for each place of axis 0 of 2; the integer kernel reads them along axis 1",
        "axis 1",
    ),
    "Resize": (
        lambda b: resized(b, "linear"),
        "grow",
        "nearest only, not for linear",
        "leave this one in float",
    ),
    **{
        f"no kernel for {op}": (unary(op), "layer", f"onnxruntime has no integer kernel for {op}", remedy)
        for op, remedy in (
            ("HardSigmoid", "quantized sum: DQ(q, s/6, z) + 0.5 → Q(1/255, 0)"),
            ("HardSwish", "x · HardSigmoid(x)"),
            ("Tanh", "leave this one in float"),
            ("Gelu", "leave this one in float"),
            ("ReduceMean", "GlobalAveragePool"),
        )
    },
}


@pytest.mark.parametrize("case", REASONS)
def test_the_reason_is_found_and_names_the_layer(case: str, tmp_path: Path) -> None:
    make, layer, reason, remedy = REASONS[case]
    found = look(make, tmp_path)
    assert not found.all_integer
    [operator] = [operator for operator in found.floats if operator.layer == layer]
    assert operator.reason is not None
    assert reason in operator.reason.what
    assert remedy in operator.reason.remedy
    assert f"{operator.reason.what}\n    → {operator.reason.remedy}" in str(found)


CLEAN: dict[str, tuple[Make, list[tuple[str, str]]]] = {
    "Conv": (lambda b: b.qdq(conv(b)), [("Conv", "QLinearConv")]),
    "Conv, signed": (
        lambda b: b.qdq(conv(b, zero=0, dtype=np.int8), zero=0, dtype=np.int8),
        [("Conv", "QLinearConv")],
    ),
    "Conv, Relu": (
        lambda b: b.qdq(b.op("Relu", conv(b)), zero=0),
        [("Conv", "QLinearConv"), ("Relu", "QLinearConv")],
    ),
    "Conv, Clip": (lambda b: clip(b, 6 / 255), [("Conv", "QLinearConv"), ("Clip", "QLinearConv")]),
    "Add, Relu": (
        lambda b: b.qdq(b.op("Relu", b.op("Add", image(b), image(b))), zero=0),
        [("Add", "QLinearAdd"), ("Relu", "QLinearAdd")],
    ),
    "Conv, Reshape": (
        lambda b: b.qdq(b.op("Reshape", conv(b), b.constant(np.array([0, -1])))),
        [("Conv", "QLinearConv"), ("Reshape", "Reshape")],
    ),
    "MaxPool, nothing behind": (
        lambda b: b.op("MaxPool", image(b), kernel_shape=[2, 2]),
        [("MaxPool", "MaxPool")],
    ),
    "Gemm": (lambda b: gemm(b, bias=True, leave=False), [("Gemm", "QGemm")]),
    "Gemm to float": (lambda b: gemm(b, bias=True), [("Gemm", "QGemm")]),
    "Gemm, float bias": (lambda b: gemm(b, bias=False, leave=False), [("Gemm", "QGemm")]),
    "MatMul to float": (lambda b: matmul(b, "n", bias=False), [("MatMul", "MatMulIntegerToFloat")]),
    "MatMul, bias": (lambda b: matmul(b, 2, leave=False), [("MatMul", "QGemm"), ("Add", "QGemm")]),
    "MatMul, dynamic": (lambda b: dynamic(b), [("MatMulInteger", "DynamicQuantizeMatMul")]),
    "MatMul, dynamic, bias": (
        lambda b: dynamic(b, bias=True),
        [("MatMulInteger", "DynamicQuantizeMatMul"), ("Add", "DynamicQuantizeMatMul")],
    ),
    "Resize": (lambda b: resized(b, "nearest"), [("Resize", "Resize")]),
    "Softmax": (unary("Softmax", 1 / 256), [("Softmax", "QLinearSoftmax")]),
}


def dynamic(build: Builder, bias: bool = False) -> str:
    """A product of integers whose input has the range it has."""
    integers = build.op("DynamicQuantizeLinear", build.input(("n", 16)), outputs=3)
    weight = build.constant(build.random.integers(-127, 128, (16, 8)).astype(np.int8))
    product = build.op("MatMulInteger", integers, weight, f"{integers}.2")
    scale = build.op("Mul", f"{integers}.1", build.constant(np.full(8, 0.01, np.float32)))
    scaled = build.op("Mul", build.op("Cast", product, to=onnx.TensorProto.FLOAT), scale)
    return build.op("Add", scaled, build.constant(np.ones(8, np.float32))) if bias else scaled


def test_a_scale_that_does_not_belong_to_a_product_is_seen(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        value = dynamic(build)
        return build.op("Mul", value, build.constant(np.float32(3.0)))

    found = look(make, tmp_path)
    assert [operator.op for operator in found.operators] == ["MatMulInteger", "Mul"]
    assert [operator.op for operator in found.floats] == ["Mul"]


def test_weights_of_few_bits_are_told_from_integers(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        packed = build.constant(build.random.integers(0, 256, (8, 1, 8)).astype(np.uint8))
        scales = build.constant(np.full((8, 1), 0.01, np.float32))
        value = build.input(("n", 16))
        made = build.op(
            "MatMulNBits", value, packed, scales, domain="com.microsoft", K=16, N=8, bits=4, block_size=16
        )
        return build.op("Add", made, build.constant(np.ones(8, np.float32)))

    [operator] = look(make, tmp_path).operators
    assert operator.reason is not None
    assert operator.reason.what == "its weight is stored in 4 bits and multiplied in float"


@pytest.mark.parametrize("case", CLEAN)
def test_fused_operators_are_clean(case: str, tmp_path: Path) -> None:
    make, kernels = CLEAN[case]
    found = look(make, tmp_path)
    assert [(operator.op, operator.kernel) for operator in found.operators] == kernels
    assert found.all_integer
    assert "\n" not in str(found)


def test_computations_on_shapes_are_left_out(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        value = image(build)
        rows = build.op("Gather", build.op("Shape", value), build.constant(np.array([0])))
        return build.op("Reshape", value, build.op("Concat", rows, build.constant(np.array([-1])), axis=0))

    assert [operator.op for operator in look(make, tmp_path).operators] == ["Reshape"]


def test_the_text_counts_kernels_and_lists_what_stayed_in_float() -> None:
    fused = Operator("stem", "node_conv", "Conv", "QLinearConv", None)
    island = Operator("act", "node_tanh", "Tanh", "Tanh", Reason("onnxruntime has no kernel", "leave it"))
    assert str(Lint(Path("m.onnx"), (fused, fused, island))) == (
        "m.onnx: 2 of 3 operators run on integers (2 QLinearConv)\n"
        "  act (node_tanh): Tanh as Tanh; onnxruntime has no kernel\n"
        "    → leave it"
    )


def test_a_quantized_network_is_clean_and_its_layers_are_named(tmp_path: Path) -> None:
    found = lint(quantized(Convolutions(0), torch.zeros(2, 3, 24, 24), tmp_path / "m.onnx"))
    assert found.all_integer, str(found)
    named = {operator.layer for operator in found.operators}
    assert named >= {"stem", "depthwise", "mix", "squeeze", "excite", "fc"}


def test_the_float_islands_of_a_transformer_are_found(tmp_path: Path) -> None:
    found = lint(quantized(Encoder(), torch.zeros(2, 9, 32), tmp_path / "m.onnx"))
    assert {operator.op for operator in found.floats} == {"LayerNormalization", "Erf", "Div"}


def test_operators_of_one_kind_with_one_remedy_are_told_together() -> None:
    operators = tuple(
        Operator(f"block{i}", f"node{i}", "Softmax", "Softmax", Reason(f"operand {i} is float", "quantize"))
        for i in range(6)
    )
    other = Operator("head", "head", "Erf", "Erf", Reason("no kernel", "leave it"))
    assert str(Lint(Path("m.onnx"), (*operators, other))).splitlines() == [
        "m.onnx: 0 of 7 operators run on integers",
        "  block0 (node0): Softmax as Softmax; operand 0 is float",
        "    → quantize",
        "    likewise 5 Softmax: block1, block2, block3, and 2 more",
        "  head: Erf as Erf; no kernel",
        "    → leave it",
    ]
