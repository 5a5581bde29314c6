"""What training with few bits costs on real images: scikit-learn's digits, 450 of them for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

import fxcompress
from benchmarks.low_bits import Method, accuracy, floats, quantized
from fxcompress.demo import Digits, load_digits
from tests.runtime.networks import needs_vnni

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> Digits:
    torch.set_num_threads(1)
    return load_digits(0)


@pytest.fixture(scope="module")
def trained(digits: Digits) -> dict[type[nn.Module], nn.Module]:
    return {kind: floats(kind, digits, 0) for kind in (nn.ReLU, nn.Hardtanh)}


@needs_vnni
def test_with_eight_bits_training_loses_less_than_a_point_in_integers_too(
    digits: Digits, trained: dict[Any, nn.Module], tmp_path: Path
) -> None:
    expected = accuracy(trained[nn.ReLU], digits)
    assert expected > 0.97
    module = quantized(Method("qat", 8, 8), trained[nn.ReLU], digits, 0)
    assert isinstance(module, fxcompress.CompiledModule)
    assert accuracy(module, digits) > expected - 0.01
    report = fxcompress.export_onnx(module, tmp_path / "digits.onnx")
    assert report.lint is not None
    assert report.lint.all_integer, str(report.lint)
    assert report.parity is not None
    assert report.parity.mismatches == 0
    assert all(output.mismatches == 0 for output in report.parity.outputs)
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: digits.test_images.numpy()})
    right = torch.from_numpy(logits).argmax(1) == digits.test_labels
    assert float(right.double().mean()) > expected - 0.01


@pytest.mark.parametrize(
    ("method", "points"),
    [
        (Method("qat", 4, 4), 2),
        (Method("lsq", 4, 4), 2),
        (Method("lsq+", 4, 4), 2),
        (Method("lsq", 2, 2), 4),
        (Method("lsq+", 2, 2), 4),
        (Method("dorefa", 2), 3),
        (Method("dorefa", 1), 4),
        (Method("bnn", 1, 1, nn.Hardtanh), 7),
    ],
    ids=str,
)
def test_few_bits_cost_no_more_than_is_documented(
    method: Method, points: int, digits: Digits, trained: dict[Any, nn.Module]
) -> None:
    model = trained[method.activation]
    lost = 100 * (accuracy(model, digits) - accuracy(quantized(method, model, digits, 0), digits))
    assert lost <= points


def test_at_two_bits_what_is_learned_pays(digits: Digits, trained: dict[Any, nn.Module]) -> None:
    found = [
        accuracy(quantized(Method(name, 2, 2), trained[nn.ReLU], digits, 0), digits)
        for name in ("qat", "lsq+")
    ]
    assert found[1] > found[0] + 0.02
