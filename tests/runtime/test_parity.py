"""onnxruntime computes what exact integer arithmetic says, on whole networks; broken bounds are errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxcompress.errors import ExportError
from fxcompress.runtime import integer
from fxcompress.runtime.arithmetic import Inputs
from fxcompress.runtime.graphs import Array, Node
from fxcompress.runtime.lint import lint
from fxcompress.runtime.parity import compare
from tests.export.models import vision_model
from tests.runtime.building import Builder
from tests.runtime.decomposed import Decomposed
from tests.runtime.networks import Convolutions, Encoder, exported, feeds, needs_vnni, quantized

SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8)]


@needs_vnni
@pytest.mark.parametrize("seed", [0, 1, *SLOW])
def test_convolutional_networks_are_equal_bit_by_bit(seed: int, tmp_path: Path) -> None:
    example = torch.zeros(2, 3, 32, 32)
    path = quantized(Convolutions(seed), example, tmp_path / "m.onnx", seed)
    parity = compare(path, feeds(example, seed))
    assert parity.all_integer
    assert parity.elements > 20_000
    assert parity.mismatches == 0
    assert [output.mismatches for output in parity.outputs] == [0]
    kernels = {node.kernel for node in parity.nodes}
    assert kernels >= {"QLinearConv", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QGemm"}
    assert kernels >= {"QLinearLeakyRelu", "QLinearGlobalAveragePool"}
    assert str(parity).endswith("0 of 21 outputs; 0 operators in float")


@needs_vnni
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_integer_kernels_around_float_islands_are_equal(seed: int, tmp_path: Path) -> None:
    example = torch.zeros(2, 9, 32)
    path = quantized(Encoder(), example, tmp_path / "m.onnx", seed)
    parity = compare(path, feeds(example, seed))
    assert not parity.all_integer
    assert parity.mismatches == 0
    assert {node.kernel for node in parity.nodes} >= {"QLinearMatMul", "QLinearSoftmax", "QLinearAdd"}


@needs_vnni
@pytest.mark.parametrize("opset", [18, 21])
def test_a_converted_model_is_equal_bit_by_bit(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.zeros(2, 3, 16, 16)
    path = exported(Decomposed(), example, tmp_path / "m.onnx", opset)
    found = lint(path)
    assert found.all_integer
    layers = [operator.layer for operator in found.operators]
    assert (layers[0], layers[2]) == ("stem", "blocks.0")
    assert {operator.kernel for operator in found.operators} == {"QLinearConv", "QLinearAdd"}
    parity = compare(path, feeds(example, 0))
    assert parity.all_integer
    assert parity.mismatches == 0
    assert [(output.elements, output.mismatches) for output in parity.outputs] == [(3 * 8 * 16 * 16, 0)]


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_models_are_equal_bit_by_bit(name: str, tmp_path: Path) -> None:
    example = torch.zeros(1, 3, 96, 96)
    path = quantized(vision_model(name), example, tmp_path / "m.onnx")
    assert lint(path).all_integer
    parity = compare(path, feeds(example, 0))
    assert parity.all_integer
    assert parity.elements > 1_000_000
    assert parity.mismatches == 0
    assert [output.mismatches for output in parity.outputs] == [0]


def off_by(steps: int, elements: int) -> Callable[[Node, Inputs], Array]:
    """A sum that is wrong by ``steps`` in its first ``elements`` elements."""
    right = integer.KERNELS["QLinearAdd"]

    def kernel(node: Node, inputs: Inputs) -> Array:
        result = right(node, inputs)
        flat = result.reshape(-1)
        flat[:elements] = np.where(flat[:elements] < 128, flat[:elements] + steps, flat[:elements] - steps)
        return result

    return kernel


def add_graph(folder: Path, *, island: bool) -> tuple[Path, dict[str, Array]]:
    build = Builder()
    value = build.qdq(build.input(("n", 100)))
    total = build.qdq(build.op("Add", value, value, name="layer1.add"), 0.04)
    path = build.save(folder / "m.onnx", build.op("Exp", total) if island else total)
    return path, {"x": np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)}


def test_one_wrong_element_of_an_integer_graph_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inputs = add_graph(tmp_path, island=False)
    monkeypatch.setitem(integer.KERNELS, "QLinearAdd", off_by(1, 1))
    message = (
        r"m.onnx: layer1.add \(QLinearAdd\): 1 of 20000 values of 'v\d' differ, by up to 1 steps; 1 more; "
    )
    with pytest.raises(ExportError, match=message + r"allowed: 0, since no operator runs in float\n"):
        compare(path, inputs)


@pytest.mark.parametrize(("steps", "elements", "allowed"), [(1, 2, True), (1, 3, False), (2, 1, False)])
def test_around_a_float_operator_one_step_on_one_element_of_ten_thousand_is_allowed(
    steps: int, elements: int, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, inputs = add_graph(tmp_path, island=True)
    monkeypatch.setitem(integer.KERNELS, "QLinearAdd", off_by(steps, elements))
    if allowed:
        parity = compare(path, inputs)
        assert parity.mismatches == elements
        assert max(node.largest_step for node in parity.nodes) == steps
        assert parity.floats == ("exp5",)
        return
    words = rf"layer1.add \(QLinearAdd\): {elements} of 20000 .* up to {steps} steps; allowed: 0.0001"
    with pytest.raises(ExportError, match=words):
        compare(path, inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes the inputs x; got none\n"),
        ({"y": np.zeros((2, 100), np.float32)}, "takes the inputs x; got y\n"),
        ({"x": np.zeros((2, 99, 1), np.float32)}, "onnxruntime fails on m.onnx: .*\nCheck shapes"),
    ],
)
def test_inputs_that_do_not_fit_are_told(inputs: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, _ = add_graph(tmp_path, island=False)
    with pytest.raises(ExportError, match=message):
        compare(path, inputs)
