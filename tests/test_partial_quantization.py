"""partial_quantization: which layers stay float, under measured and under made-up latencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fxcompress
from fxcompress import partial_quantization as module_under_test
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.capture import capture
from fxcompress.partial_quantization import partial_quantization
from fxcompress.passes.insert_fake_quant import quantizers
from tests.helpers import image, ready

X = image(4, 3, 8, 8).float()
CONFIG: list[dict[str, Any]] = [{"quantizer": "ptq", "quant_bits": 8}]
LAYERS = ("0", "2", "4", "6")


def net() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)]
    return ready(nn.Sequential(*layers)).float()


@pytest.fixture
def latencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.4, and 0.1 for each float layer."""

    def share(module: Any, reference: Path) -> float:
        weights = [name for name in quantizers(module) if name.endswith("weight")]
        return 0.4 + 0.1 * (len(LAYERS) - len(weights))

    monkeypatch.setattr(module_under_test, "_share", share)


@pytest.mark.parametrize(("budget", "floats"), [(0.45, 0), (0.55, 1), (0.65, 2), (0.9, 3)])
def test_as_many_of_the_worst_layers_as_the_budget_allows_stay_float(
    latencies: None, budget: float, floats: int
) -> None:
    model = net()
    found = partial_quantization(model, CONFIG, X, data=[X], latency=budget)
    order = [row.layer for row in found.sqnr.worst() if row.op == "conv2d"]
    assert found.floats == tuple(order[:floats])
    assert found.latency == pytest.approx(0.4 + 0.1 * floats)
    assert set(found.measured) <= {0, 1, 2, 3}
    quantized = fxcompress.compile(model, found.config_list, X, data=[X])
    assert {name for name in LAYERS if f"{name}_weight" not in quantizers(quantized)} == set(found.floats)
    assert found.left >= found.sqnr.total
    assert json.loads(found.to_json())["floats"] == list(found.floats)
    assert str(found).startswith(f"{floats} layers float: {found.latency:.2f} of the float latency")


def test_layers_with_rounded_weights_alone_are_chosen_among_too(latencies: None) -> None:
    layers = [nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
    model = ready(nn.Sequential(*layers, nn.Linear(32, 32))).float()
    x = image(4, 32).float()
    found = partial_quantization(model, [{"quantizer": "weight_only"}], x, data=[x], latency=0.65)
    assert found.floats == tuple(row.layer for row in found.sqnr.worst())[:2]


def test_a_budget_out_of_reach_says_how_far_it_goes(latencies: None) -> None:
    with pytest.raises(FxcompressError, match=r"latency=0\.3: even with every layer quantized 0\.40 of"):
        partial_quantization(net(), CONFIG, X, data=[X], latency=0.3)


@pytest.mark.parametrize("budget", [0, 1, 50])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match=r"expected latency, a number in \(0, 1\)"):
        partial_quantization(net(), CONFIG, X, data=[X], latency=budget)


def test_a_latency_is_measured_in_onnxruntime(tmp_path: Path) -> None:
    model = net()
    fxcompress.export_onnx(capture(model, X), tmp_path / "float.onnx", verify=False)
    same = module_under_test._share(capture(model, X), tmp_path / "float.onnx")
    assert 0.5 < same < 2  # the file against itself
