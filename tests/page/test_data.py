"""The figures: equal to those of the reports they come from, and the same again from JSON."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

import fxcompress
from fxcompress.errors import FxcompressError
from fxcompress.graph.cost import Latency
from fxcompress.graph.module import CompiledModule
from fxcompress.page.collect import Extras, collect
from fxcompress.page.data import Amounts, Layer, PageData, Timing, Total
from fxcompress.passes.insert_masks import mask_names
from fxcompress.report import Change, Kept, make_report
from fxcompress.sqnr import LayerSqnr, SqnrReport
from tests.helpers import ready
from tests.page.example import RESULTS, example, pruned

NOISE = SqnrReport((LayerSqnr("a", "conv2d", {"weight": math.inf}, 40.0, 38.5, -math.inf),), math.inf)


def test_json_gives_the_same_data_again() -> None:
    data = example().data
    assert PageData.from_json(data.to_json()) == data
    assert json.loads((example().folder / "report.json").read_text()) == json.loads(data.to_json())


def test_infinite_figures_are_strings_in_json_and_figures_again_when_read() -> None:
    data = replace(example().data, sqnr=NOISE)
    rows = json.loads(data.to_json(), parse_constant=pytest.fail)["sqnr"]
    assert (rows["total"], rows["rows"][0]["end_to_end"]) == ("inf", "-inf")
    assert PageData.from_json(data.to_json()) == data


def test_totals_are_those_of_the_report() -> None:
    report, data = example().small.report, example().data
    totals = {total.name: total for total in data.totals}
    assert totals["accuracy"] == Total("accuracy", 0.98, 0.95, "metric")
    # stem 3·8·9+8, conv 2·(8·8·9+8), norm 2·8, head 8·4+4; then conv 4·8·9+4, 8·4·9+8, norm 2·4
    assert totals["parameters"] == Total("parameters", 1444, 856)
    assert (report.parameters.before, report.parameters.after) == (1444, 856)
    # 6×6 pixels: 36·(216 + 2·576) + 32 before, 36·(216 + 2·288) + 32 after
    assert totals["MACs per example"] == Total("MACs per example", 49280, 28544)
    assert totals["size in memory"].before == report.bytes.before
    file = example().folder / "small.onnx"
    assert totals["ONNX file"] == Total("ONNX file", None, file.stat().st_size, "bytes")


def test_layers_have_the_figures_of_the_report() -> None:
    layer = {layer.name: layer for layer in example().data.layers}["block.conv1"]
    assert layer.latency is not None
    assert replace(layer, latency=None) == Layer(
        "block.conv1",
        "Conv2d",
        (8, 8, 3, 3),
        (4, 8, 3, 3),
        parameters=Change(584, 292),
        channels=Change(8, 4),
        macs=Change(20736, 10368),
    )


def test_parameters_of_the_layers_add_up_to_the_total() -> None:
    layers = example().data.layers
    assert sum(layer.parameters.before for layer in layers) == 1444
    assert sum(layer.parameters.after for layer in layers) == 856


def test_every_second_of_the_graph_is_a_layers_or_an_operators() -> None:
    data = example().data
    assert all(layer.latency and layer.latency.before > 0 < layer.latency.after for layer in data.layers)
    assert data.other_latency is not None
    assert data.other_latency.before > 0  # relu, add, mean


def test_seconds_before_are_those_of_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, small = pruned()
    timed: list[CompiledModule] = []

    def compare(
        modules: dict[str, CompiledModule], *_: object, **__: object
    ) -> dict[str, dict[str, Latency]]:
        timed.extend(modules.values())
        return {name: {"stem": Latency((1.0,))} for name in modules}

    monkeypatch.setattr("fxcompress.page.collect.compare_layer_latency", compare)
    data = collect(small, Extras())
    dense, after = timed
    assert mask_names(masked)
    assert mask_names(dense) == []
    assert after is small
    of_model, by_layer = data.timing
    assert "Before is the dense model: the module before the speedup, its masks taken out." in of_model
    assert "(2×3×8×8), eval mode, 1 thread, the median of 20 calls" in of_model
    assert "run operator by operator in PyTorch, the median of 10 passes" in by_layer


def test_latencies_that_were_measured_are_taken_over() -> None:
    timing = Timing("onnxruntime", Latency((3.0, 1.0, 2.0)), Latency((1.0,)), "on a Tuesday.")
    data = collect(pruned().small, Extras(), latency=[timing])
    assert data.totals[-1] == Total("latency in onnxruntime", 2.0, 1.0, "s")
    assert data.timing[0] == "Latency in onnxruntime: on a Tuesday."


def test_a_report_keeps_the_latency_it_has() -> None:
    masked, small = pruned()
    report = small.report.measure_latency(rounds=3)
    data = collect(report, Extras(), latency=False)
    assert data.totals[-1].before == report.latency[0].median
    assert data.timing == ("Latency in PyTorch: the report's own, the median of 3 calls.",)
    assert mask_names(masked)


def test_without_masks_nothing_is_said_to_have_been_removed() -> None:
    before, after = (fx.symbolic_trace(nn.Linear(3, 2)) for _ in range(2))
    report = make_report(before, after, torch.randn(1, 3))
    assert collect(report, Extras(), latency=False).kept is None
    stayed = make_report(before, after, torch.randn(1, 3), [("a", "b")])
    assert collect(stayed, Extras(), latency=False).kept == (Kept("a", "b"),)
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))).float()
    masked = fxcompress.compile(net, [{"sparsity": 0.5, "op_names": ["0"]}], torch.randn(2, 3, 8, 8))
    assert collect(fxcompress.speedup(masked), Extras(), latency=False).kept == ()


def test_what_was_not_removed_keeps_its_reason() -> None:
    reason = "4 of 4 masked channels stay: other layers need these channels"
    assert example().data.kept == (Kept("stem", reason),)


def test_sensitivity_sqnr_and_onnx_are_taken_over() -> None:
    data, noise = example().data, example().sqnr
    assert data.sensitivity == RESULTS
    assert data.sqnr == noise
    assert data.onnx is not None
    assert data.onnx.kernels is not None
    assert data.onnx.kernels["QLinearConv"] >= 3
    assert data.onnx.parity is not None
    assert (data.onnx.floats, data.onnx.parity.mismatches) == ((), 0)
    assert data.missing == ()


def test_sensitivity_may_be_its_results_alone_and_is_sorted() -> None:
    data = collect(pruned().small, Extras(sensitivity={"a": {0.5: 1.0, 0.1: 2.0}}), latency=False)
    assert data.sensitivity is not None
    assert list(data.sensitivity["a"]) == [0.1, 0.5]


def test_what_is_missing_is_said_with_the_way_to_it() -> None:
    data = collect(pruned().small, Extras(), latency=False)
    assert [row.part for row in data.missing] == [
        "Metrics",
        "Latency",
        "Sensitivity",
        "Quantization error",
        "ONNX",
    ]
    assert "sqnr=" in data.missing[3].remedy
    assert (data.sensitivity, data.sqnr, data.onnx, data.other_latency) == (None, None, None, None)


def test_latency_needs_the_module_before() -> None:
    small = pruned().small
    gc.collect()  # the masked module is gone
    assert "Latency" in [row.part for row in collect(small, Extras()).missing]


def test_any_two_modules_have_a_report() -> None:
    before, after = (fx.symbolic_trace(nn.Sequential(nn.Linear(3, n), nn.Linear(n, 2))) for n in (8, 4))
    data = collect(make_report(before, after, torch.randn(1, 3)), Extras())
    assert [layer.parameters for layer in data.layers] == [Change(32, 16), Change(18, 10)]
    assert isinstance(data.layers[0].latency, Amounts)
    assert data.graph is not None
    assert [node.name for node in data.graph.nodes] == ["input", "0", "1", "output"]


def test_a_module_without_a_report_is_refused_with_the_remedy() -> None:
    model = fxcompress.capture(nn.Linear(3, 2), torch.randn(1, 3))
    with pytest.raises(FxcompressError, match=r"got Linear without a report.*make_report"):
        collect(model, Extras())


@pytest.mark.parametrize(
    ("type", "shape", "is_matrix"),
    [
        ("Conv2d", (16, 1, 1, 1), True),
        ("Linear", (1, 1), True),
        ("BatchNorm2d", (16,), False),
        ("Parameter", (1, 197, 192), True),
        ("Parameter", (96, 1, 1), False),
    ],
)
def test_charts_and_graph_show_matrices(type: str, shape: tuple[int, ...], is_matrix: bool) -> None:
    assert Layer("a", type, shape, shape, Change(1, 1)).is_matrix is is_matrix
    assert Layer("a", type, None, shape, Change(0, 1)).is_matrix is is_matrix
