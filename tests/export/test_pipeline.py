"""Files of what ``compile`` and ``speedup`` make: the whole way out of the door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch

import fxcompress
from tests.export.models import build
from tests.export.test_archive import equal, meta_of, run

CONFIG: list[dict[str, Any]] = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]


@pytest.fixture(scope="module")
def compiled() -> fxcompress.CompiledModule:
    """A residual network with half of its filters masked."""
    model, inputs = build("residual")
    return fxcompress.compile(model.eval(), CONFIG, inputs)


def test_a_compiled_model_comes_back_with_its_masks_and_speeds_up_the_same(
    compiled: fxcompress.CompiledModule, tmp_path: Path
) -> None:
    x = torch.randn(3, 3, 8, 8)
    fxcompress.save(compiled, tmp_path / "a")
    loaded = fxcompress.load(tmp_path / "a")
    fxcompress.save(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert equal(run(compiled, x), run(loaded, x))
    assert meta_of(compiled) == meta_of(loaded)
    small, again = fxcompress.speedup(compiled), fxcompress.speedup(loaded)
    assert equal(dict(small.state_dict()), dict(again.state_dict()))
    assert equal(run(small, x), run(again, x))


def test_a_small_model_comes_back_small(compiled: fxcompress.CompiledModule, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 8, 8)
    small = fxcompress.speedup(compiled)
    fxcompress.save(small, tmp_path / "a")
    loaded = fxcompress.load(tmp_path / "a")
    assert equal(run(small, x), run(loaded, x))
    assert repr(loaded) == repr(small)
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in compiled.parameters())
    again = fxcompress.compile(loaded, CONFIG)
    fxcompress.save(fxcompress.speedup(again), tmp_path / "b")


def test_masked_and_small_model_export_to_the_same_function(
    compiled: fxcompress.CompiledModule, tmp_path: Path
) -> None:
    fxcompress.export_onnx(compiled, tmp_path / "masked.onnx")
    fxcompress.export_onnx(fxcompress.speedup(compiled), tmp_path / "small.onnx")
    x = torch.randn(5, 3, 8, 8).numpy()
    both = [
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {"x": x})[0]
        for name in ("masked", "small")
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-5 * np.abs(both[0]).max())
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / "masked.onnx").stat().st_size
