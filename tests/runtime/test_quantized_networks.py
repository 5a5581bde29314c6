"""Random networks, quantized and exported: every integer is the right one, whatever a network is made of."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress
from fxcompress.errors import ConfigError, ExportError
from fxcompress.export import amx
from fxcompress.quantization.placement import COMPUTING, layer_calls
from tests.comparing import map_floats
from tests.generator import random_case
from tests.runtime.networks import needs_vnni

QUICK = (*range(5), 7, 58, 72, 133, 143, 236)
ALL = range(400)
OUTCOMES = ("compared", "no ONNX form", "nothing to quantize")


@pytest.fixture(autouse=True)
def any_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of these small networks have both kernels, too."""
    monkeypatch.setattr(amx, "_FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(amx, "_FEWEST_CHANNELS", 1)


def check(seed: int, folder: Path) -> str:
    """Quantize network ``seed``, export it, compare every kernel; returns what became of it."""
    network, _ = random_case(seed)
    model = network.model().float()
    inputs = map_floats(torch.Tensor.float, network.inputs(batch=3))
    more = map_floats(torch.Tensor.float, network.inputs(batch=4, seed=7))
    config: list[dict[str, Any]] = [
        {"quant_bits": random.Random(seed).choice([8, 8, 8, 6]), "quantizer": "ptq"}
    ]
    if not any(
        call.op in COMPUTING
        for calls in layer_calls(fxcompress.capture(model, inputs)).values()
        for call in calls
    ):
        with pytest.raises(ConfigError, match="expected at least one selected layer"):
            fxcompress.compile(model, config, inputs)
        return "nothing to quantize"
    if any(isinstance(layer, torch.nn.Embedding) for layer in model.modules()):
        config.append({**config[0], "op_types": ["Embedding"]})
    module = fxcompress.compile(model, config, inputs, data=[inputs, more])
    try:
        report = fxcompress.export_onnx(module, folder / "model.onnx", amx=seed % 2 == 1)
    except ExportError:
        with pytest.raises(ExportError):  # nor has the network itself a form that onnxruntime runs
            fxcompress.export_onnx(fxcompress.capture(model, inputs), folder / "float.onnx")
        return "no ONNX form"
    assert report.parity is not None
    return "compared"


@needs_vnni
@pytest.mark.parametrize("seed", QUICK)
def test_integers_of_random_networks_are_exact(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path) in OUTCOMES


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("seed", ALL)
def test_integers_of_more_random_networks_are_exact(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path) in OUTCOMES
