"""calibration_config: what was observed, written, read and taken over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.errors import ConfigError, ExportError
from fxcompress.quantization import QUANTIZERS, PTQ_Quantizer, QAT_Quantizer

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()


def calibrated(**entry: Any) -> PTQ_Quantizer:
    quantizer = PTQ_Quantizer(model(), [{"quant_bits": 8, **entry}], example_inputs=X, data=[X])
    quantizer.compress()
    return quantizer


def test_every_tensor_of_every_layer_is_described() -> None:
    config = calibrated().calibration_config()
    assert list(config) == ["0", "2"]
    first = config["0"]
    low, high = min(0.0, X.min().item()), X.max().item()
    assert first["tracked_min_input"] == pytest.approx(low)
    assert first["tracked_max_input"] == pytest.approx(high)
    assert first["input_scale"] == pytest.approx((high - low) / 255, rel=1e-6)
    assert (first["input_bits"], first["input_dtype"], first["input_scheme"]) == (
        8,
        "uint",
        "per_tensor_affine",
    )
    assert (first["weight_dtype"], first["weight_scheme"]) == ("int", "per_channel_symmetric")
    weight = model().get_parameter("0.weight").detach()
    assert first["weight_scale"] == pytest.approx((weight.abs().amax(1) / 127).tolist(), rel=1e-6)
    assert first["weight_zero_point"] == [0] * 5
    json.dumps(config)


def test_a_fresh_quantizer_takes_over_what_a_file_says(tmp_path: Path) -> None:
    first = calibrated()
    config = first.export_model(tmp_path / "w.pt", tmp_path / "c.json", tmp_path / "m.onnx", (3, 4))
    assert config == first.calibration_config() == json.loads((tmp_path / "c.json").read_text())
    assert (tmp_path / "m.onnx").exists()
    weights = torch.load(tmp_path / "w.pt", weights_only=True)
    fresh = model()
    fresh.load_state_dict(weights)
    second = QAT_Quantizer(fresh, [{"quant_bits": 8}], example_inputs=X)
    module = second.compress().eval()
    second.load_calibration_config(tmp_path / "c.json")
    assert first.bound_model is not None
    assert torch.equal(module(X), first.bound_model.eval()(X))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"02": c["0"]}, "'02'.*: expected a quantized layer; did you mean"),
        (lambda c: {"0": {**c["0"], "input_bits": 4}}, "input_bits: expected 8, .* got 4"),
        (lambda c: {"0": {**c["0"], "weight_scale": [0.1] * 3}}, r"'0'.*weight_scale: expected \[5\], got"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, message: str) -> None:
    quantizer = calibrated()
    with pytest.raises(ConfigError, match=message):
        quantizer.load_calibration_config(change(quantizer.calibration_config()))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ExportError, match="expected an object with an entry per layer, got list"):
        calibrated().load_calibration_config(tmp_path / "c.json")
    with pytest.raises(ExportError, match="Expected a calibration file that export_model wrote"):
        calibrated().load_calibration_config(tmp_path / "missing.json")


@pytest.mark.parametrize("name", ["dorefa", "bnn"])
def test_what_has_no_grid_has_no_entry(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    quantizer = QUANTIZERS[name](model, [{"quant_bits": 2}], example_inputs=torch.zeros(1, 4))
    quantizer.compress()
    assert quantizer.export_model(tmp_path / "w.pt", tmp_path / "c.json") == {"0": {}, "1": {}}
