"""ONNX files say nothing of the machine they were written on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import fxcompress


def test_onnx_file_names_no_path_of_the_machine(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    captured = fxcompress.capture(model, torch.randn(2, 3, 8, 8))
    fxcompress.export_onnx(captured, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content
