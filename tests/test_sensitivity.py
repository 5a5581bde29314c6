"""SensitivityAnalysis: one layer at a time, resumable, and the config list it proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.pruning import get_masks
from fxcompress.sensitivity import SensitivityAnalysis
from tests.helpers import image, ready, relative_error, run

X = image(4, 6)


def net() -> Any:
    return ready(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))


def closeness(model: nn.Module) -> Any:
    """Minus the distance to the unpruned output."""
    expected = run(model, (X,))
    return lambda module: -relative_error(run(module, (X,)), expected)


def test_layers_are_measured_one_at_a_time(tmp_path: Path) -> None:
    model = net()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    file = tmp_path / "sensitivity.csv"
    analysis = SensitivityAnalysis(
        model, closeness(model), X, layers=["0", "2"], sparsities=[0.5, 0.25], file=file
    )
    results = analysis.run()
    assert results["0"][0.0] == results["2"][0.0] == 0.0
    masked = model[0].weight.data.clone()
    rows = masked.abs().sum(1).argsort()[:4]
    masked[rows] = 0
    bias = model[0].bias.data.clone()
    bias[rows] = 0
    hidden = torch.relu(X @ masked.T + bias)
    expected = relative_error(model[4](torch.relu(model[2](hidden))), model(X))
    assert results["0"][0.5] == pytest.approx(-expected)
    assert file.read_text().splitlines()[0] == "layer,0.0,0.25,0.5"
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, file = net(), tmp_path / "sensitivity.csv"
    calls: list[int] = []
    measure = closeness(model)

    def evaluate(module: nn.Module) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return float(measure(module))

    options: dict[str, Any] = {"layers": ["0", "2"], "sparsities": [0.25, 0.5], "file": file}
    with pytest.raises(KeyboardInterrupt):
        SensitivityAnalysis(model, evaluate, X, **options).run()
    resumed = SensitivityAnalysis(model, evaluate, X, **options)
    assert resumed.run() == SensitivityAnalysis(model, measure, X, **options | {"file": None}).run()
    assert len(calls) == 4 + 2  # of layer 2, whose first measurement was interrupted


def test_the_proposal_prunes_what_does_not_matter() -> None:
    model = ready(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)))

    def evaluate(module: nn.Module) -> float:
        """Layer 0 counts ten times as much as layer 2, which is about as large."""
        masked = {name: 1 - float(entries["weight"].mean()) for name, entries in get_masks(module).items()}
        return -10 * masked.get("0", 0.0) - masked.get("2", 0.0)

    steps = [0.25, 0.5, 0.75]
    analysis = SensitivityAnalysis(model, evaluate, X, layers=["0", "2"], sparsities=steps)
    with pytest.raises(FxcompressError, match=r"call run\(\) first"):
        analysis.config_list(parameters=0.6)
    analysis.run()
    proposed = {entry["op_names"][0]: entry["sparsity"] for entry in analysis.config_list(parameters=0.6)}
    assert proposed == {"0": 0.25, "2": 0.75}
    assert analysis.config_list(parameters=0.7) == [{"pruner": "l1", "sparsity": 0.75, "op_names": ["2"]}]
    with pytest.raises(FxcompressError, match=r"parameters=0\.1: the sparsities measured \(up to 0\.75\)"):
        analysis.config_list(parameters=0.1)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    model = net()
    analysis = SensitivityAnalysis(model, closeness(model), X, layers=["0"], sparsities=[0.5])
    analysis.run()
    analysis.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_layers_and_files(tmp_path: Path) -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"layers: '00' is no layer that .*; did you mean '0'"):
        SensitivityAnalysis(model, closeness(model), X, layers=["00"])
    other = tmp_path / "other.csv"
    other.write_text("layer,0.5\nconv9,1.0\n")
    with pytest.raises(FxcompressError, match=r"other\.csv: holds other layers"):
        SensitivityAnalysis(model, closeness(model), X, file=other)
    other.write_text("nonsense\n1,2\n")
    with pytest.raises(FxcompressError, match=r"other\.csv: expected a CSV file of a sensitivity analysis"):
        SensitivityAnalysis(model, closeness(model), X, file=other)
