"""export_model: weights, masks and ONNX of a masked model, as NNI's pruners write them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from torch import nn

from fxcompress.errors import ExportError
from fxcompress.export.masks import check_masks, load_masks
from fxcompress.export.seeds import export_model
from fxcompress.graph.capture import capture
from tests.export.models import Residual, build
from tests.export.test_archive import masked


def test_the_three_files_describe_the_same_masked_network(tmp_path: Path) -> None:
    model, x = build("residual")
    module = capture(model.eval(), x)
    masked(module, "grouped")
    masked(module, "fc")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export_model(module, tmp_path / "m.pth", tmp_path / "masks.pth", tmp_path / "m.onnx", (4, 3, 8, 8))
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.pth", "masks.pth"]

    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert type(state) is dict
    assert list(state) == list(model.state_dict())
    fresh = Residual().eval()
    fresh.load_state_dict(state)
    y = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(fresh(y), module(y))
    got = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": y.numpy()})[0]
    np.testing.assert_allclose(got, module(y).detach().numpy(), rtol=0, atol=1e-5)

    masks = check_masks(load_masks(tmp_path / "masks.pth"), fresh)
    assert sorted(masks) == ["fc", "grouped"]
    assert torch.equal(state["fc.weight"], before["fc.weight"] * masks["fc"]["weight"])
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_tied_weights_are_masked_and_stored_once(tmp_path: Path) -> None:
    model, _ = build("tied")
    model.get_submodule("embed").register_buffer("weight_mask", (torch.rand(12, 6) > 0.5).float())
    export_model(model, tmp_path / "m.pth")
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert "embed.weight_mask" not in state
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    expected = model.get_parameter("embed.weight") * model.get_buffer("embed.weight_mask")
    assert torch.equal(state["head.weight"], expected)


def test_without_masks_the_weights_are_written_and_a_mask_file_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    with pytest.raises(ExportError, match=r"mask_path was given but the model has no masks"):
        export_model(model, tmp_path / "m.pth", tmp_path / "masks")
    assert not os.listdir(tmp_path)
    export_model(model, tmp_path / "m.pth")
    assert torch.equal(torch.load(tmp_path / "m.pth", weights_only=True)["weight"], model.weight)


def test_an_input_shape_for_a_model_of_several_inputs_is_refused(tmp_path: Path) -> None:
    model, inputs = build("several")
    with pytest.raises(ExportError, match=r"input_shape describes one input, the model takes 2"):
        export_model(capture(model, inputs), tmp_path / "m.pth", None, tmp_path / "m.onnx", (2, 4))
    assert not os.listdir(tmp_path)
    export_model(capture(model, inputs), tmp_path / "m.pth", None, tmp_path / "m.onnx")
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.pth"]
