"""export_onnx: the file computes what the module computes, or nothing is written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ExportError
from fxcompress.export import onnx as exporter
from fxcompress.export.archive import load, save
from fxcompress.export.onnx import export_onnx
from fxcompress.graph.capture import capture
from tests.export.models import build, vision_model
from tests.export.test_archive import masked


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


SLOW_IF_PLAIN = ["residual", "tied", "skip", "upsampling", "encoder"]


@pytest.mark.parametrize(
    ("name", "captured"),
    [
        *((name, True) for name in ("residual", "several", "tied", "skip", "upsampling", "encoder")),
        ("several", False),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in SLOW_IF_PLAIN),
    ],
)
def test_the_file_agrees_with_the_module_at_two_batch_sizes(
    name: str, captured: bool, tmp_path: Path
) -> None:
    model, inputs = build(name)
    module = capture(model, inputs) if captured else model
    report = export_onnx(module, tmp_path / "m.onnx", None if captured else inputs)
    assert report.max_relative_difference is not None
    assert report.max_relative_difference <= 1e-5
    assert report.batch_is_dynamic
    assert len(report.batches) == 2
    assert report.batches[1] == report.batches[0] + 1
    assert os.listdir(tmp_path) == ["m.onnx"]
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    assert onnx.load(str(tmp_path / "m.onnx")).opset_import[0].version == 18


def test_float64_agrees_more_closely_where_onnxruntime_has_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(3, 4).double())
    assert report.max_relative_difference is not None
    assert report.max_relative_difference <= 1e-12
    convolutions, inputs = build("float64")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run n.onnx.*Conv.*\nExport in float32"):
        export_onnx(convolutions, tmp_path / "n.onnx", inputs)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_names_outputs_and_integers(tmp_path: Path) -> None:
    model, inputs = build("several")
    names = ["pooled", "hidden", "next", "positive"]
    report = export_onnx(model, tmp_path / "m.onnx", inputs, input_names=["a", "b"], output_names=names)
    assert report.inputs == ("a", "b")
    assert report.outputs == tuple(names)
    ids, weights = torch.randint(0, 11, (5, 4)), torch.rand(5, 4)
    got = session(tmp_path / "m.onnx").run(None, {"a": ids.numpy(), "b": weights.numpy()})
    with torch.no_grad():
        expected = model.eval()(ids, weights=weights)
    np.testing.assert_allclose(got[0], expected["pooled"].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(got[2], (ids + 1).numpy())
    np.testing.assert_array_equal(got[3], expected["positive"].numpy())


def test_the_mode_of_every_module_is_restored_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, inputs = build("residual")
    model.train()
    model.get_submodule("bn").eval()
    export_onnx(model, tmp_path / "m.onnx", inputs)
    assert model.training
    assert not model.get_submodule("bn").training
    assert model.get_submodule("fc").training
    assert capfd.readouterr() == ("", "")


def test_a_masked_weight_is_one_tensor_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = capture(
        nn.Sequential(nn.Linear(256, 300), nn.ReLU(), nn.Linear(300, 4)).eval(), torch.randn(2, 256)
    )
    masked(module, "0")
    report = export_onnx(module, tmp_path / "m.onnx")
    assert report.max_relative_difference is not None
    assert report.max_relative_difference <= 1e-5
    stored = onnx.load(str(tmp_path / "m.onnx")).graph
    assert "Mul" not in [node.op_type for node in stored.node]
    sizes = sorted(math.prod(t.dims) for t in stored.initializer)
    assert sizes == sorted([256 * 300, 300, 300 * 4, 4])
    product = next(
        onnx.numpy_helper.to_array(t) for t in stored.initializer if math.prod(t.dims) == 256 * 300
    )
    weight = (module.get_parameter("0.weight") * module.get_buffer("0.weight_mask")).detach().numpy()
    assert np.array_equal(product, weight) or np.array_equal(product, weight.T)


def test_a_saved_and_loaded_model_exports(tmp_path: Path) -> None:
    model, inputs = build("residual")
    save(capture(model, inputs), tmp_path / "m")
    assert export_onnx(load(tmp_path / "m"), tmp_path / "m.onnx").batches == (2, 3)


def test_a_batch_of_one_stays_dynamic_unless_fixed_on_request(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3))
    assert report.batches == (1, 2)
    report = export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3), dynamic_batch=False)
    assert not report.batch_is_dynamic
    assert report.batches == (1,)


class Constants(nn.Module):
    """Returns numbers and None beside tensors, and takes optional inputs."""

    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0) -> dict[str, Any]:
        z = x * scale if y is None else x + y
        return {"z": z, "none": None, "three": 3, "rows": x.shape[0]}


def test_the_example_may_be_a_part_of_a_larger_tensor(tmp_path: Path) -> None:
    """The graph would guard the sizes of the tensor that it is a view of."""
    model, x = build("upsampling")
    x = torch.randn(4, 3, 20, 20)[:2, :, :8, :8]
    for module in (capture(model, x), model):
        assert export_onnx(module, tmp_path / "m.onnx", x).batch_is_dynamic


def test_constant_outputs_and_optional_inputs(tmp_path: Path) -> None:
    report = export_onnx(Constants(), tmp_path / "m.onnx", (torch.randn(2, 3), None, 3.0))
    assert len(report.inputs) == 1
    assert len(report.outputs) == 2
    assert report.max_relative_difference == 0.0


class Shifting(nn.Module):
    """Gives another output each time it is called: 1 % more."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.01 * self.calls)


def test_a_disagreement_names_the_output_and_the_figures_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    with pytest.raises(
        ExportError, match=r"m.onnx: output 'y' differs.*= \d\.\d\de-0[123].*allowed 1e-04 for torch.float32"
    ):
        export_onnx(Shifting(), path, torch.randn(2, 3), output_names=["y"])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.onnx"]
    report = export_onnx(Shifting(), path, torch.randn(2, 3), verify=False)
    assert report.max_relative_difference is None
    assert path.stat().st_size > 10


class Unsupported(nn.Module):
    """Singular values have no ONNX operator."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)  # type: ignore[no-any-return]


def test_an_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"Unsupported cannot be written as ONNX opset 18: aten._linalg_svd.*\n"
    ):
        export_onnx(Unsupported(), tmp_path / "m.onnx", torch.randn(3, 3))
    assert not os.listdir(tmp_path)


def test_inputs_that_do_not_fit_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match=r"Linear does not run on the example inputs \(\(2, 7\)\).*\n"):
        export_onnx(nn.Linear(3, 3), tmp_path / "m.onnx", torch.randn(2, 7))
    with pytest.raises(ExportError, match=r"the folder .* does not exist"):
        export_onnx(nn.Linear(3, 3), tmp_path / "no" / "m.onnx", torch.randn(2, 3))
    assert capfd.readouterr() == ("", "")


def test_weights_above_the_limit_go_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_SINGLE_FILE_LIMIT", 10_000)
    export_onnx(nn.Linear(100, 100), tmp_path / "m.onnx", torch.randn(2, 100))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    assert session(tmp_path / "m.onnx").run(None, {"input": np.zeros((3, 100), np.float32)})[0].shape == (
        3,
        100,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision_models_agree(name: str, tmp_path: Path) -> None:
    report = export_onnx(vision_model(name), tmp_path / "m.onnx", torch.randn(2, 3, 64, 64))
    assert report.max_relative_difference is not None
    assert report.max_relative_difference <= 1e-4
