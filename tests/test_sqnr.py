"""sqnr: by hand, against quantizers that are switched one by one, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import FxcompressError
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.quantization import PTQ_Quantizer, QAT_Quantizer
from fxcompress.quantization.layerwise import Runner
from fxcompress.sqnr import LayerSqnr, SqnrReport, sqnr
from tests.helpers import Function, image, ready, run

X = image(6, 3, 8, 8).float()
ALL = ["weight", "input", "output"]


def decibels(exact: Tensor, rounded: Tensor) -> float:
    exact, rounded = exact.double(), rounded.double()
    return float(10 * torch.log10(exact.square().mean() / (exact - rounded).square().mean()))


def net() -> Any:
    """A residual net with pooling and an activation in place."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.relu(m.n1(m.c1(x))), 2)
        z = m.act(m.c2(y))
        z += m.c3(y)
        out: Tensor = m.fc(F.adaptive_avg_pool2d(F.relu(z), 1).flatten(1))
        return out

    layers = {
        "c1": nn.Conv2d(3, 8, 3, padding=1), "n1": nn.BatchNorm2d(8), "relu": nn.ReLU(inplace=True),
        "c2": nn.Conv2d(8, 6, 3, padding=1), "act": nn.Hardswish(inplace=True), "c3": nn.Conv2d(8, 6, 1),
        "fc": nn.Linear(6, 4),
    }  # fmt: skip
    return ready(Function(forward, **layers)).float()


def quantized(model: nn.Module, bits: int = 4) -> PTQ_Quantizer:
    quantizer = PTQ_Quantizer(model, [{"quant_bits": bits}], example_inputs=X, data=[X])
    quantizer.compress()
    return quantizer


def module_of(quantizer: Any) -> CompiledModule:
    assert quantizer.bound_model is not None
    module: CompiledModule = quantizer.bound_model
    return module


def rows_of(report: SqnrReport) -> dict[str, LayerSqnr]:
    return {row.layer: row for row in report.rows}


def test_a_linear_layer_by_hand() -> None:
    """x = (3, 0), (0, 3); w = (1, 0.3); b = 0.5: y = 3.5 and 1.4, E[y²] = 7.105.

    w at 3 bits, s = 1/3: 0.3 → 1/3, so y → 1.5 and E[e²] = 0.005. x at 2 bits, s = 1: exact. y at 2 bits,
    s = 3.5/3: 1.4 → 3.5/3, so E[e²] = 0.2333²/2; 1.5 is rounded to the same.
    """
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[1.0, 0.3]]), torch.tensor([0.5])
    x = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    config = [{"quantizer": "ptq", "quant_types": ALL, "quant_bits": {"weight": 3, "input": 2, "output": 2}}]
    report = sqnr(fxcompress.compile(nn.Sequential(model), config, x, data=[x]), [x])
    (row,) = report.rows
    output = 10 * math.log10(7.105 / ((1.4 - 3.5 / 3) ** 2 / 2))
    assert (row.layer, row.op) == ("0", "linear")
    assert row.tensors["weight"] == pytest.approx(10 * math.log10(7.105 / 0.005), abs=1e-3)
    assert row.tensors["input"] == math.inf
    assert row.tensors["output"] == pytest.approx(output, abs=1e-3)
    for figure in (row.local, row.accumulated, row.end_to_end, report.total):
        assert figure == pytest.approx(output, abs=1e-3)


def test_end_to_end_is_the_model_with_one_layer_rounded() -> None:
    quantizer = quantized(net())
    module = module_of(quantizer)
    found = quantizers(module)
    report = sqnr(module, [X[:4], X[4:]])
    rounded = run(module, (X,))
    for each in found.values():
        each.quantizing = False  # type: ignore[assignment]
    exact = run(module, (X,))
    assert report.total == pytest.approx(decibels(exact, rounded), abs=1e-3)
    assert {"c1", "c2", "c3", "fc"} < set(rows_of(report))
    for name in ("c1", "c2", "c3", "fc"):
        mine = quantizer.quantizers_of(name).values()
        for each in mine:
            each.quantizing = True
        expected = decibels(exact, run(module, (X,)))
        for each in mine:
            each.quantizing = False
        assert rows_of(report)[name].end_to_end == pytest.approx(expected, abs=1e-3)


def test_values_survive_modules_that_work_in_place() -> None:
    """What is in front of the Hardswish is rounded after it was overwritten, but for a copy."""
    x = image(8, 6).float()
    model = ready(nn.Sequential(nn.Linear(6, 8), nn.Hardswish(inplace=True), nn.Linear(8, 3))).float()
    config = [{"quant_bits": 4, "quant_types": ["output"], "op_names": ["0"]}]
    quantizer = PTQ_Quantizer(model, config, example_inputs=x, data=[x])
    module = quantizer.compress()
    report = sqnr(module, [x])
    expected = decibels(run(model, (x,)), run(module, (x,)))
    assert rows_of(report)["0"].end_to_end == pytest.approx(expected, abs=1e-3)
    assert report.total == pytest.approx(expected, abs=1e-3)


def test_local_errors_are_those_of_one_tensor_at_the_layer_behind_its_relu() -> None:
    model = net()
    quantizer = quantized(model)
    row = rows_of(sqnr(module_of(quantizer), [X], end_to_end=False))
    assert row["c2"].end_to_end is None
    first, second = quantizer.quantizers_of("c1"), quantizer.quantizers_of("c2")
    model.relu.inplace = model.act.inplace = False
    with torch.no_grad():
        scale = model.n1.weight / (model.n1.running_var + model.n1.eps).sqrt()
        weight = model.c1.weight * scale[:, None, None, None]
        bias = (model.c1.bias - model.n1.running_mean) * scale + model.n1.bias
        y = F.relu(F.conv2d(X, weight, bias, padding=1))
        for name, changed in {
            "weight": F.relu(F.conv2d(X, first["weight"](weight), bias, padding=1)),
            "input": F.relu(F.conv2d(first["input"](X), weight, bias, padding=1)),
            "output": first["output"](y),
        }.items():
            assert row["c1"].tensors[name] == pytest.approx(decibels(y, changed), abs=1e-2)
        y, pooled = F.max_pool2d(y, 2), F.max_pool2d(first["output"](y), 2)
        exact = model.c2(y)
        assert row["c2"].tensors["input"] == pytest.approx(decibels(exact, model.c2(pooled)), abs=1e-2)
        both = F.conv2d(pooled, second["weight"](model.c2.weight), model.c2.bias, padding=1)
        expected = decibels(exact, second["output"](both))
        assert row["c2"].local == pytest.approx(expected, abs=1e-2)


def test_what_is_accumulated_at_the_last_layer_is_the_total() -> None:
    report = sqnr(module_of(quantized(net())), [X], end_to_end=False)
    assert rows_of(report)["fc"].accumulated == pytest.approx(report.total)
    assert rows_of(report)["c1"].accumulated == rows_of(report)["c1"].local


def test_rows_are_layers_and_operators_between_them_in_order() -> None:
    """No row for the product that folds a norm into a weight, nor for pooling that moves values."""
    report = sqnr(module_of(quantized(net())), [X], end_to_end=False)
    ops = {row.layer: row.op for row in report.rows}
    assert [ops[name] for name in ops][:2] == ["conv2d", "conv2d"]
    assert "max_pool2d" not in ops.values()
    assert list(ops.values()).count("mul") == 1  # of the hard-swish
    assert list(ops.values()).count("add") == 1


@pytest.mark.parametrize("name", ["naive", "dorefa", "bnn", "weight_only", "gptq", "dynamic", "lsq", "qat"])
def test_any_quantizer_can_be_measured(name: str) -> None:
    x = image(8, 32).float()
    model = ready(nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))).float()
    module = fxcompress.compile(model, [{"quantizer": name}], x, data=[x])
    if name in ("lsq", "qat"):
        module.train()(x)
    report = sqnr(module, [x])
    assert report.rows[0].layer == "0"
    assert report.total == pytest.approx(decibels(run(model, (x,)), run(module.eval(), (x,))), abs=1e-3)


def test_the_module_is_left_as_it_was_and_start_steps_are_ignored() -> None:
    config = [{"quant_bits": 4, "quant_start_step": 100}]
    quantizer = QAT_Quantizer(net(), config, example_inputs=X, data=[X])
    module = quantizer.compress().train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = sqnr(module, [X])
    assert math.isfinite(report.total)
    assert module.training
    assert not any(q.quantizing for q in quantizers(module).values())
    assert all(torch.equal(state[name], tensor) for name, tensor in module.state_dict().items())


def test_local_errors_cost_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    original = Runner.value

    def counted(self: Runner, node: Any, known: Any) -> Any:
        runs.append(1)
        return original(self, node, known)

    monkeypatch.setattr(Runner, "value", counted)

    def cost(depth: int) -> int:
        model = ready(nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth)))).float()
        module = module_of(quantized(model))
        runs.clear()
        sqnr(module, [X], end_to_end=False)
        return len(runs)

    four, eight, sixteen = cost(4), cost(8), cost(16)
    assert sixteen - eight == 2 * (eight - four)


def test_the_report_as_text_json_and_csv(tmp_path: Path) -> None:
    rows = (
        LayerSqnr("good", "conv2d", {"weight": math.inf}, 40.0, 30.0, 35.0),
        LayerSqnr("bad", "linear", {"weight": 20.0, "output": 21.5}, 18.0, 16.0, 12.25),
    )
    report = SqnrReport(rows, 11.0)
    assert [row.layer for row in report.worst()] == ["bad", "good"]
    text = str(report).splitlines()
    assert text[0] == "SQNR in dB: 11.0 at the output with everything rounded"
    assert text[3].split() == ["bad", "linear", "12.2", "18.0", "20.0", "21.5", "16.0"]
    assert report.to_text(rows=1).splitlines()[-1] == "and 1 more"
    facts = json.loads(report.to_json())
    assert facts["layers"][0]["tensors"] == {"weight": "inf"}
    assert facts["total"] == 11.0
    report.export(tmp_path / "sqnr.csv")
    with (tmp_path / "sqnr.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert lines[1] == {
        "layer": "bad", "op": "linear", "weight": "20.0", "output": "21.5",
        "local": "18.0", "accumulated": "16.0", "end_to_end": "12.25",
    }  # fmt: skip
    assert lines[0]["output"] == ""
    assert float(lines[0]["weight"]) == math.inf


def test_what_cannot_be_measured_is_named() -> None:
    model = net()
    with pytest.raises(FxcompressError, match=r"expected a module of fxcompress\.compile, got Function"):
        sqnr(model, [X])
    with pytest.raises(FxcompressError, match="got one without fake-quantize nodes"):
        sqnr(fxcompress.capture(model, X), [X])
    untrained = fxcompress.compile(model, [{"quant_bits": 8}], X)
    with pytest.raises(FxcompressError, match=r"'c1_input' has seen no values yet; pass data="):
        sqnr(untrained, [X])
    with pytest.raises(FxcompressError, match="expected at least one batch"):
        sqnr(module_of(quantized(model)), [])
