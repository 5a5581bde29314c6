"""Each integer kernel equals onnxruntime's bit by bit, over shapes, attributes, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxcompress.errors import ExportError
from fxcompress.runtime.graphs import read_graph
from fxcompress.runtime.integer import KERNELS, Interpreter
from fxcompress.runtime.parity import RuntimeParity, compare
from tests.runtime.building import Builder, Shape
from tests.runtime.networks import needs_vnni

Make = Callable[[Builder], str]
SEEDS = range(4)


def parity_of(make: Make, folder: Path, seed: int) -> RuntimeParity:
    """``make`` built from ``seed``, as opset 18 to 21, on random inputs."""
    build = Builder(seed)
    path = build.save(folder / "m.onnx", make(build), opset=18 + seed % 4)
    random = np.random.default_rng(seed)
    feeds = {}
    for value in build.inputs:
        shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = (random.standard_normal(shape) * 2).astype(np.float32)
    return compare(path, feeds)


def check(make: Make, kernel: str, folder: Path, seeds: Sequence[int] = SEEDS) -> None:
    """``compare`` refuses any mismatch; the kernel has to be there and the graph all integer."""
    for seed in seeds:
        parity = parity_of(make, folder, seed)
        assert parity.all_integer
        assert parity.mismatches == 0
        assert [output.mismatches for output in parity.outputs] == [0]
        assert kernel in [node.kernel for node in parity.nodes]


def quantized(build: Builder, shape: Shape, name: str = "x") -> str:
    """A graph input in random steps."""
    return build.qdq(build.input(shape, name), *random_steps(build))


def random_steps(build: Builder) -> tuple[float, int]:
    return float(build.random.uniform(0.01, 0.05)), int(build.random.integers(0, 256))


def convolution(x: Shape, weight: Sequence[int], **attributes: Any) -> Make:
    def make(build: Builder) -> str:
        scale, zero = random_steps(build)
        value = build.qdq(build.input(x), scale, zero)
        stored, scales = build.weight(weight)
        made = build.op("Conv", value, stored, build.bias(scales, scale), **attributes)
        return build.qdq(made, *random_steps(build))

    return make


def unary(op: str, x: Shape, *, same: bool = False, **attributes: Any) -> Make:
    """``op`` between quantizers, the ``same`` or two random ones."""

    def make(build: Builder) -> str:
        steps = random_steps(build)
        made = build.op(op, build.qdq(build.input(x), *steps), **attributes)
        return build.qdq(made, *(steps if same else random_steps(build)))

    return make


CONVOLUTIONS = {
    "1d, grouped, strided, uneven padding": convolution(
        (2, 6, 20), [8, 3, 3], group=2, strides=[2], pads=[1, 2]
    ),
    "2d, dilated, uneven padding": convolution(
        (2, 16, 15, 14), [24, 16, 3, 5], pads=[1, 2, 0, 1], strides=[2, 1], dilations=[2, 1]
    ),
    "2d, same padding": convolution(("n", 16, 15, 14), [24, 16, 3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    "2d, deep": convolution((1, 128, 14, 14), [64, 128, 3, 3], pads=[1] * 4),
    "2d, pointwise": convolution((2, 32, 9, 9), [48, 32, 1, 1]),
    "2d, depthwise": convolution((2, 64, 14, 14), [64, 1, 3, 3], pads=[1] * 4, group=64),
    "2d, depthwise, strided": convolution(
        (2, 24, 14, 14), [24, 1, 5, 5], pads=[2] * 4, group=24, strides=[2, 2]
    ),
    "3d": convolution((2, 4, 6, 7, 8), [5, 4, 3, 2, 3], pads=[1, 0, 1, 1, 1, 1]),
}


@needs_vnni
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case: str, tmp_path: Path) -> None:
    check(CONVOLUTIONS[case], "QLinearConv", tmp_path)


BROADCASTS = [
    ((2, 8, 7, 5), (2, 8, 7, 5)),
    ((2, 8, 1, 1), (2, 8, 7, 5)),
    ((2, 8, 7, 5), (2, 8, 1, 1)),
    ((8, 1, 1), (2, 8, 7, 5)),
    ((2, 8, 7, 5), (5,)),
    ((5,), (2, 8, 7, 5)),
    ((1,), (2, 8, 7, 5)),
    ((2, 8, 1, 5), (2, 8, 7, 1)),
    ((2, 8, 7, 1), (2, 8, 1, 5)),
    ((2, 1, 1, 1), (1, 8, 1, 1)),
    ((1, 1), (1, 1)),
    ((3, 32, 17, 31), (3, 32, 17, 31)),
    ((3, 32, 1, 1), (3, 32, 17, 31)),
]


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize(("left", "right"), BROADCASTS)
def test_sums_and_products(op: str, left: Shape, right: Shape, tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        made = build.op(op, quantized(build, left), quantized(build, right, "y"))
        return build.qdq(made, *random_steps(build))

    check(make, f"QLinear{op}", tmp_path, range(8))


POOLINGS: list[tuple[list[int], dict[str, Any]]] = [
    ([2, 2], {"strides": [2, 2]}),
    ([3, 3], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ([3, 2], {"strides": [2, 2], "ceil_mode": 1}),
    ([3, 3], {"strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1}),
    ([3, 3], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ([3, 3], {"auto_pad": "SAME_LOWER"}),
    ([11, 10], {}),
]


@pytest.mark.parametrize(("size", "attributes"), POOLINGS)
def test_poolings(size: list[int], attributes: dict[str, Any], tmp_path: Path) -> None:
    shape = (2, 16, 11, 10)
    for padding in (0, 1):
        make = unary("AveragePool", shape, kernel_shape=size, count_include_pad=padding, **attributes)
        check(make, "QLinearAveragePool", tmp_path)
    check(unary("MaxPool", shape, same=True, kernel_shape=size, **attributes), "MaxPool", tmp_path)


@pytest.mark.parametrize(
    ("kernel", "make"),
    [
        ("QLinearAveragePool", unary("AveragePool", (2, 16, 11), kernel_shape=[3], strides=[2])),
        ("QLinearAveragePool", unary("AveragePool", (2, 4, 5, 6, 7), kernel_shape=[3, 2, 2])),
        ("QLinearGlobalAveragePool", unary("GlobalAveragePool", ("n", 33, 7, 9))),
        ("MaxPool", unary("MaxPool", (2, 8, 13, 13), same=True, kernel_shape=[3, 3], dilations=[2, 1])),
        ("QLinearSigmoid", unary("Sigmoid", ("n", 5, 7, 9))),
        ("QLinearLeakyRelu", unary("LeakyRelu", ("n", 5, 7, 9), alpha=0.2)),
        ("Transpose", unary("Transpose", (2, 3, 4), same=True, perm=[2, 0, 1])),
        ("Flatten", unary("Flatten", ("n", 3, 4), same=True)),
    ],
)
def test_other_unary_operators(kernel: str, make: Make, tmp_path: Path) -> None:
    check(make, kernel, tmp_path)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(("scale", "zero"), [(1 / 256, 0), (1 / 500, 7)])
def test_softmax(axis: int, scale: float, zero: int, tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        value = build.op("Softmax", quantized(build, (4, 6, 32, 33)), axis=axis)
        return build.qdq(value, scale, zero)

    check(make, "QLinearSoftmax", tmp_path, range(8))


def _moved(op: str, constants: Sequence[Any], **attributes: Any) -> Make:
    def make(build: Builder) -> str:
        value = quantized_same(build)
        others = ["" if c is None else build.constant(c) for c in constants]
        return build.qdq(build.op(op, value, *others, **attributes))

    def quantized_same(build: Builder) -> str:
        return build.qdq(build.input((2, 3, 4, 6)))

    return make


@pytest.mark.parametrize(
    ("op", "make"),
    [
        ("Reshape", _moved("Reshape", [np.array([0, -1])])),
        ("Slice", _moved("Slice", [np.array([1]), np.array([3]), np.array([2])])),
        ("Resize", _moved("Resize", [None, np.array([1, 1, 2, 2], np.float32)], mode="nearest")),
        (
            "Resize",
            _moved(
                "Resize",
                [None, None, np.array([2, 3, 7, 9])],
                mode="nearest",
                nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
        ),
        ("Gather", _moved("Gather", [np.array([2, 0])], axis=1)),
        ("Unsqueeze", _moved("Unsqueeze", [np.array([0])])),
    ],
)
def test_integers_are_handed_on(op: str, make: Make, tmp_path: Path) -> None:
    check(make, op, tmp_path)


def product(
    op: str, x: Shape, weight: Sequence[int], *, leave: bool, bias: bool = False, **attributes: Any
) -> Make:
    def make(build: Builder) -> str:
        scale, zero = random_steps(build)
        value = build.qdq(build.input(x), scale, zero)
        stored, scales = build.weight(weight, axis=0 if attributes.get("transB") else len(weight) - 1)
        inputs = [value, stored] + ([build.bias(scales, scale)] if bias else [])
        made = build.op(op, *inputs, **attributes)
        return made if leave else build.qdq(made, *random_steps(build))

    return make


@needs_vnni
@pytest.mark.parametrize(
    ("kernel", "make"),
    [
        ("QGemm", product("Gemm", ("n", 40), [24, 40], leave=False, bias=True, transB=1)),
        ("QGemm", product("Gemm", ("n", 40), [24, 40], leave=True, bias=True, transB=1)),
        ("QGemm", product("Gemm", (40, 5), [40, 24], leave=False, transA=1, alpha=0.5)),
        ("QGemm", product("Gemm", (5, 40), [40, 24], leave=True)),
        ("QLinearMatMul", product("MatMul", ("n", 17, 64), [64, 48], leave=False)),
        ("MatMulIntegerToFloat", product("MatMul", ("n", 17, 64), [64, 48], leave=True)),
    ],
)
def test_matrix_products(kernel: str, make: Make, tmp_path: Path) -> None:
    check(make, kernel, tmp_path)


@pytest.mark.parametrize("leave", [False, True])
def test_products_of_two_activations(leave: bool, tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        made = build.op("MatMul", quantized(build, (2, 3, 5, 16)), quantized(build, (2, 3, 16, 9), "y"))
        return made if leave else build.qdq(made, *random_steps(build))

    check(make, "MatMulIntegerToFloat" if leave else "QLinearMatMul", tmp_path)


@needs_vnni
def test_a_product_with_a_float_bias(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        steps = random_steps(build)
        scale, zero = build.constant(np.float32(steps[0])), build.constant(np.uint8(steps[1]))
        weight = build.constant(build.random.integers(-127, 128, (64, 48)).astype(np.int8))
        scales = build.constant(build.random.uniform(0.001, 0.01, 48).astype(np.float32))
        bias = build.constant(build.random.standard_normal(48).astype(np.float32))
        inputs = (build.q(build.input(("n", 17, 64)), *steps), weight, scale, scales, zero, "", bias)
        return build.op("MatMulIntegerToFloat", *inputs, domain="com.microsoft")

    check(make, "MatMulIntegerToFloat", tmp_path)


@needs_vnni
@pytest.mark.parametrize("columns", [1, 48])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_product_whose_range_is_that_of_the_input(
    columns: int, bias: bool, zeros: bool, tmp_path: Path
) -> None:
    def make(build: Builder) -> str:
        weight = build.constant(build.random.integers(-127, 128, (64, 48)).astype(np.int8))
        scales = build.constant(build.random.uniform(0.001, 0.01, columns).astype(np.float32))
        zero = build.constant(build.random.integers(-9, 9, columns).astype(np.int8)) if zeros else ""
        added = build.constant(build.random.standard_normal(48).astype(np.float32)) if bias else ""
        inputs = (build.input(("n", 17, 64)), weight, scales, zero, added)
        return build.op("DynamicQuantizeMatMul", *inputs, domain="com.microsoft")

    check(make, "DynamicQuantizeMatMul", tmp_path)


@needs_vnni
def test_unsigned_weights_with_a_zero_point(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        stored = build.constant(build.random.integers(0, 256, (8, 4, 3, 3)).astype(np.uint8))
        value = build.op("Conv", quantized(build, (2, 4, 9, 9)), build.dq(stored, 0.01, 117))
        return build.qdq(value, *random_steps(build))

    check(make, "QLinearConv", tmp_path)


def test_concatenations_and_choices(tmp_path: Path) -> None:
    def concat(build: Builder) -> str:
        parts = [quantized(build, (2, n, 4), name) for name, n in (("x", 3), ("y", 5), ("z", 1))]
        return build.qdq(build.op("Concat", *parts, axis=1), *random_steps(build))

    def concat_of_equal_steps(build: Builder) -> str:
        parts = [build.qdq(build.input((2, 3), name), 0.02, 100) for name in ("x", "y")]
        return build.qdq(build.op("Concat", *parts, axis=1), 0.02, 100)

    def where(build: Builder) -> str:
        chosen = build.constant(build.random.integers(0, 2, (3, 1, 5)).astype(bool))
        branches = (quantized(build, (3, 4, 5)), quantized(build, (4, 5), "y"))
        return build.qdq(build.op("Where", chosen, *branches), *random_steps(build))

    check(concat, "QLinearConcat", tmp_path)
    check(concat_of_equal_steps, "QLinearConcat", tmp_path)
    check(where, "QLinearWhere", tmp_path)


def test_every_kernel_is_compared_with_onnxruntime() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    named = source.replace('f"QLinear{op}"', '"QLinearAdd", "QLinearMul"')
    assert [kernel for kernel in KERNELS if f'"{kernel}"' not in named] == []


def test_two_quantizers_in_a_row_are_exact(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        value = quantized(build, ("n", 3, 8, 8))
        again = build.qdq(value, *random_steps(build))
        return build.qdq(build.op("Add", value, again), *random_steps(build))

    check(make, "QLinearAdd", tmp_path)


def test_signed_activations_are_exact(tmp_path: Path) -> None:
    def make(build: Builder) -> str:
        values = [build.qdq(build.input(("n", 3, 8, 8), name), 0.02, 5, np.int8) for name in ("x", "y")]
        total = build.qdq(build.op("Add", *values), 0.05, -7, np.int8)
        return build.qdq(build.op("GlobalAveragePool", total), 0.01, 3, np.int8)

    check(make, "QLinearAdd", tmp_path)


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    build = Builder()
    model = build.model(build.qdq(build.input((2, 3), "pixels")))
    with pytest.raises(ExportError, match="inputs missing: pixels; got x"):
        Interpreter(read_graph(model)).run({"x": np.zeros((2, 3), np.float32)})
