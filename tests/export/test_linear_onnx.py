"""export_onnx of linear layers with weights in groups (MatMulNBits) and with dynamic inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.export.onnx import OnnxReport
from fxcompress.quantization import DynamicQuantizer, GPTQQuantizer, WeightOnlyQuantizer
from fxcompress.runtime.optimized import optimize
from tests.helpers import Function, image, ready, run
from tests.runtime.networks import needs_vnni

EQUAL = 1e-5
"""Of the largest output: float sums in another order; what is rounded is the same."""


def networks(features: int, bias: bool) -> nn.Module:
    torch.manual_seed(features)
    layers = {"a": nn.Linear(features, 24, bias=bias), "b": nn.Linear(24, 7, bias=bias)}
    return ready(Function(lambda m, x: m.b(torch.relu(m.a(x))), **layers)).float()


def exported(module: fxcompress.CompiledModule, folder: Path) -> tuple[OnnxReport, list[onnx.NodeProto]]:
    report = fxcompress.export_onnx(module, folder / "model.onnx")
    return report, list(onnx.load(report.path).graph.node)


def in_runtime(report: OnnxReport, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    [y] = session.run(None, {report.inputs[0]: x.numpy()})
    return torch.from_numpy(np.asarray(y))


def difference(module: nn.Module, report: OnnxReport, x: Tensor) -> float:
    expected = run(module, (x,))
    return float((in_runtime(report, x) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("bits", "features", "size", "scheme"),
    [
        (4, 64, 32, "per_channel_affine"),
        (4, 70, 16, "per_channel_affine"),
        (4, 70, 32, "per_channel_symmetric"),
        (4, 33, 128, "per_channel_affine"),
        (8, 64, 32, "per_channel_symmetric"),
        (8, 70, 32, "per_channel_affine"),
        (8, 5, 16, "per_channel_affine"),
        (8, 33, 128, "per_channel_symmetric"),
    ],
)
def test_the_file_computes_what_is_simulated(
    bits: int, features: int, size: int, scheme: str, tmp_path: Path
) -> None:
    """Also where the inputs are no multiple of the group, at other batch sizes."""
    config = [{"quant_bits": bits, "quant_scheme": scheme}]
    x = image(4, features).float()
    quantizer = WeightOnlyQuantizer(networks(features, True), config, example_inputs=x, group_size=size)
    module = quantizer.compress()
    report, nodes = exported(module, tmp_path)
    found = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert [len(node.input) for node in found] == [4 if scheme.endswith("affine") else 3] * 2
    assert report.batch_is_dynamic
    assert report.notes == ()
    for rows in (1, 4, 50):
        assert difference(module, report, image(rows, features, seed=rows).float()) <= EQUAL


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bias", [False, True])
def test_three_dimensions_with_and_without_a_bias(bits: int, bias: bool, tmp_path: Path) -> None:
    x = image(2, 6, 40).float()
    module = WeightOnlyQuantizer(
        networks(40, bias), [{"quant_bits": bits}], example_inputs=x, group_size=16
    ).compress()
    report, _ = exported(module, tmp_path)
    for shape in ((1, 6, 40), (2, 6, 40), (9, 6, 40)):
        assert difference(module, report, image(*shape, seed=3).float()) <= EQUAL


def test_weights_are_stored_in_half_a_byte_and_scales_by_group(tmp_path: Path) -> None:
    x = image(4, 70).float()
    module = WeightOnlyQuantizer(networks(70, True), [{"quant_bits": 4}], example_inputs=x).compress()
    report, nodes = exported(module, tmp_path)
    [node] = [n for n in nodes if n.op_type == "MatMulNBits" and 70 in [a.i for a in n.attribute]]
    stored = {t.name: (list(t.dims), t.data_type) for t in onnx.load(report.path).graph.initializer}
    byte, real = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    assert [stored[name] for name in node.input[1:]] == [
        ([24, 3, 16], byte), ([24, 3], real), ([24, 2], byte),
    ]  # fmt: skip
    attributes = {a.name: a.i for a in node.attribute}
    assert attributes == {"K": 70, "N": 24, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert node.domain == "com.microsoft"


def test_what_gptq_chose_is_written(tmp_path: Path) -> None:
    x = image(60, 40).float()
    module = GPTQQuantizer(networks(40, True), [{"quant_bits": 4}], example_inputs=x, data=[x]).compress()
    report, nodes = exported(module, tmp_path)
    assert [n.op_type for n in nodes].count("MatMulNBits") == 2
    assert difference(module, report, image(7, 40, seed=5).float()) <= EQUAL


@pytest.mark.parametrize("bits", [2, 3, 6])
def test_widths_without_a_kernel_are_written_as_floats_and_said(bits: int, tmp_path: Path) -> None:
    x = image(4, 40).float()
    module = WeightOnlyQuantizer(networks(40, True), [{"quant_bits": bits}], example_inputs=x).compress()
    report, nodes = exported(module, tmp_path)
    assert not [n for n in nodes if n.op_type == "MatMulNBits"]
    assert report.notes == tuple(
        f"{layer}: weights of {bits} bits are written as float32: onnxruntime's MatMulNBits has 4 and 8 bits "
        "and reads float32"
        for layer in "ab"
    )
    assert difference(module, report, x) <= EQUAL


@needs_vnni
def test_inputs_in_blocks_make_products_of_integers(tmp_path: Path) -> None:
    """Each kernel agrees with exact arithmetic on the runtime's inputs, and the lint counts it."""
    x = image(4, 70).float()
    for bits in (4, 8):
        module = WeightOnlyQuantizer(networks(70, True), [{"quant_bits": bits}], example_inputs=x).compress()
        report, _ = exported(module, tmp_path)
        assert report.lint is not None
        assert [o.kernel for o in report.lint.operators if o.integer] == ["MatMulNBits"] * 2
        assert report.parity is not None
        compared = [node for node in report.parity.nodes if node.kernel == "MatMulNBits"]
        assert [(node.mismatches, node.elements) for node in compared] == [(0, 4 * 24), (0, 4 * 7)]


def test_weights_alone_are_no_integers_to_the_lint(tmp_path: Path) -> None:
    x, config = image(4, 40).float(), [{"quant_bits": 4, "quant_types": ["weight"]}]
    module = WeightOnlyQuantizer(networks(40, True), config, example_inputs=x).compress()
    report, _ = exported(module, tmp_path)
    assert report.lint is not None
    said = [str(operator) for operator in report.lint.operators]
    assert sum("its weight is stored in 4 bits and multiplied in float" in line for line in said) == 2
    assert [operator.op for operator in report.lint.operators] == ["MatMulNBits", "Relu", "MatMulNBits"]


# -- dynamic ---------------------------------------------------------------------------------------------
def attention() -> nn.Module:
    layers: dict[str, nn.Module] = {name: nn.Linear(32, 32, bias=name != "v") for name in "qkv"}

    def forward(m: Any, x: Tensor) -> Tensor:
        attended = (m.q(x) @ m.k(x).mT * 0.1).softmax(-1) @ m.v(x)
        out: Tensor = m.o(attended[:, 0])
        return out

    return ready(Function(forward, **layers, o=nn.Linear(32, 8))).float()


def test_one_dynamic_layer_is_equal_up_to_the_order_of_sums(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for bias in (False, True):
        layer = ready(nn.Sequential(nn.Linear(70, 30, bias=bias))).float()
        module = DynamicQuantizer(layer, [{"quant_bits": 8}], example_inputs=image(4, 70).float()).compress()
        report, nodes = exported(module, tmp_path)
        assert [node.op_type for node in nodes].count("DynamicQuantizeLinear") == 1
        assert [node.op for node in optimize(report.path).graph.nodes] == ["DynamicQuantizeMatMul"]
        for seed in range(5):
            assert difference(module, report, image(9, 70, seed=seed).float() * (seed + 1)) <= EQUAL


def test_a_dynamic_network_runs_on_the_kernels_of_integers(tmp_path: Path) -> None:
    """Layers that read one input share its rounding; every product equals exact arithmetic bit by bit."""
    module = DynamicQuantizer(
        attention(), [{"quant_bits": 8}], example_inputs=image(3, 7, 32).float()
    ).compress()
    report, nodes = exported(module, tmp_path)
    assert [node.op_type for node in nodes].count("DynamicQuantizeLinear") == 2
    assert report.lint is not None
    kernels = [o.kernel for o in report.lint.operators if o.op == "MatMulInteger"]
    assert kernels == ["MatMulIntegerToFloat"] * 3 + ["DynamicQuantizeMatMul"]
    assert all(
        operator.integer for operator in report.lint.operators if operator.op in ("MatMulInteger", "Add")
    )
    assert report.parity is not None
    assert report.parity.mismatches == 0
    assert {"MatMulIntegerToFloat", "DynamicQuantizeMatMul"} <= {n.kernel for n in report.parity.nodes}
    # A float sum in another order may put a value on the other side of a half: one step of one layer's 255.
    for seed in range(5):
        assert difference(module, report, image(5, 7, 32, seed=seed).float()) <= 1 / 255


def test_weights_of_a_dynamic_layer_are_stored_as_int8(tmp_path: Path) -> None:
    module = DynamicQuantizer(networks(40, True), [{"quant_bits": 8}], example_inputs=image(4, 40).float())
    report, _ = exported(module.compress(), tmp_path)
    stored = onnx.load(report.path).graph.initializer
    assert {t.data_type for t in stored if len(t.dims) > 1} == {onnx.TensorProto.INT8}


def test_integer_convolutions_and_linear_layers_of_other_kinds_in_one_file(tmp_path: Path) -> None:
    layers = {"c": nn.Conv2d(3, 8, 3), "a": nn.Linear(8, 24), "b": nn.Linear(24, 16), "d": nn.Linear(16, 4)}

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.d(torch.tanh(m.b(torch.tanh(m.a(torch.relu(m.c(x)).mean((2, 3)))))))
        return y

    net, x = ready(Function(forward, **layers)).float(), image(3, 3, 9, 9).float()
    config: list[dict[str, Any]] = [
        {"quantizer": "ptq", "op_names": ["c"]},
        {"quantizer": "dynamic", "op_names": ["a"]},
        {"quantizer": "weight_only", "op_names": ["b"]},
        {"quantizer": "gptq", "quant_bits": 8, "op_names": ["d"]},
    ]
    module = fxcompress.compile(net, config, x, data=[x])
    report, nodes = exported(module, tmp_path)
    kinds = [node.op_type for node in nodes]
    assert (kinds.count("MatMulNBits"), kinds.count("MatMulInteger"), kinds.count("MatMul")) == (2, 1, 0)
    assert report.lint is not None
    assert {"QLinearConv", "DynamicQuantizeMatMul"} <= {o.kernel for o in report.lint.operators}
    assert report.parity is not None
    assert report.parity.mismatches == 0
    # A step of the convolution's output may flip, and one of the dynamic layer's input.
    assert difference(module, report, x) <= 2 / 255
