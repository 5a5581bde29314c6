"""The report: its text, its numbers, and that it keeps no model alive."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.errors import SpeedupError
from fxcompress.graph.cost import Latency
from fxcompress.report import Change, Kept, LayerChange, Report, Subjects, _layer_changes, make_report
from tests.helpers import targets

INPUTS = torch.randn(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 10)
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return y * self.scale


def pair() -> tuple[fx.GraphModule, fx.GraphModule]:
    return fx.symbolic_trace(Net(8)), fx.symbolic_trace(Net(4))


@pytest.fixture
def report() -> Report:
    kept = [("stage.add_3", "operator cumsum has no rule: channels of [stage.conv2, stage.conv5] stay")]
    return make_report(*pair(), INPUTS, kept=kept, notes=["dropout at [drop] was dropped by the capture"])


EXPECTED = """\
fxcompress report
                   before   after   removed
───────────────────────────────────────────
parameters            340     180     47.1%
MACs per example   13,904   6,952     50.0%
bytes               1,432     760     46.9%

3 of 4 layers changed
layer   type           before     after
───────────────────────────────────────
conv    Conv2d        8×3×3×3   4×3×3×3
norm    BatchNorm2d         8         4
head    Linear           10×8      10×4

1 masked but kept
node          reason
────────────────────────────────────────────────────────
stage.add_3   operator cumsum has no rule: channels of
              [stage.conv2, stage.conv5] stay

note: dropout at [drop] was dropped by the capture"""


def test_text_shows_totals_changed_layers_and_reasons(report: Report) -> None:
    assert report.to_text(width=56) == EXPECTED


def test_text_never_exceeds_its_width(report: Report) -> None:
    for width in (40, 56, 100):
        assert all(len(line) <= width for line in report.to_text(width=width).splitlines())


def test_long_lists_are_cut_and_counted(report: Report) -> None:
    assert "and 2 more" in report.to_text(rows=1)
    assert "and" not in EXPECTED


def test_str_is_the_text(report: Report) -> None:
    assert str(report) == report.to_text()


def test_json_holds_the_same_facts(report: Report) -> None:
    facts = json.loads(report.to_json())
    assert facts == report.to_dict()
    assert facts["parameters"] == {"before": 340, "after": 180, "removed": 0.470588}
    assert facts["macs"] == {"before": 13904, "after": 6952, "removed": 0.5}
    assert facts["layers"][1] == {
        "name": "conv",
        "type": "Conv2d",
        "before": [8, 3, 3, 3],
        "after": [4, 3, 3, 3],
        "channels": {"before": 8, "after": 4, "removed": 0.5},
        "parameters": {"before": 224, "after": 112, "removed": 0.5},
        "macs": {"before": 13824, "after": 6912, "removed": 0.5},
    }
    assert facts["kept"] == [{"node": report.kept[0].node, "reason": report.kept[0].reason}]
    assert facts["notes"] == list(report.notes)
    assert "latency" not in facts


def test_layers_that_exist_on_one_side_only_are_listed() -> None:
    before, after = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    report = make_report(fx.symbolic_trace(before), fx.symbolic_trace(after), torch.randn(1, 2))
    assert report.layers[1] == LayerChange("1", "Linear", (2, 2), None, Change(6, 0), Change(2, 0))


class Widths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2)
        self.table = nn.Embedding(10, 5)
        self.norm = nn.LayerNorm(7)
        self.lstm = nn.LSTM(3, 2)
        self.slope = nn.PReLU(1)


def test_channels_are_those_of_the_output_and_parameters_all_of_the_layers() -> None:
    rows = {row.name: row for row in _layer_changes(Widths(), nn.Module())}
    assert {name: row.channels and row.channels.before for name, row in rows.items()} == {
        "up": 4,
        "table": 5,
        "norm": 7,
        "slope": 1,
        **dict.fromkeys(f"lstm.{n}_l0" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
    }
    assert rows["up"].parameters == Change(6 * 2 * 9 + 4, 0)
    assert rows["lstm.weight_ih_l0"].parameters == Change(8 * 3, 0)


def test_subjects_are_there_as_long_as_they_are_alive() -> None:
    before, after = pair()
    report = make_report(before, after, INPUTS)
    assert report.subjects == Subjects(before, after, ((INPUTS,), {}))
    del before
    gc.collect()
    assert report.subjects == Subjects(None, after, ((INPUTS,), {}))
    assert Report(Change(0, 0), Change(0, 0), (), (), ()).subjects is None


def test_macs_are_counted_after_both_modules_are_gone() -> None:
    before, after = pair()
    alive: list[Callable[[], object]] = [
        weakref.ref(before),
        weakref.ref(after),
        weakref.ref(before.get_parameter("conv.weight")),
    ]
    report = make_report(before, after, INPUTS)
    del before, after
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3
    assert report.macs == Change(13904, 6952)
    assert report.macs_by_layer["head"] == Change(80, 40)


def test_latency_is_measured_on_request_and_shown() -> None:
    before, after = pair()
    report = make_report(before.train(), after, INPUTS)
    timed = report.measure_latency(rounds=2)
    assert report.latency is None
    assert timed.latency is not None
    assert all(latency.median > 0 and len(latency.seconds) == 2 for latency in timed.latency)
    assert "latency, median ms" in str(timed)
    assert timed.to_dict()["latency"]["after"]["runs"] == 2
    assert before.training
    assert int(before.norm.num_batches_tracked) == 0  # type: ignore[arg-type, union-attr]


def test_latency_before_is_that_of_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    x = torch.randn(2, 1, 8, 8)
    masked = fxcompress.compile(net, [{"sparsity": 0.5, "op_names": ["0"]}], x)
    timed: dict[str, Any] = {}

    def compare(calls: dict[str, Any], rounds: int) -> dict[str, Latency]:
        timed.update({name: call.func for name, call in calls.items()})
        return dict.fromkeys(calls, Latency((1.0,)))

    monkeypatch.setattr("fxcompress.report.compare_latency", compare)
    small = fxcompress.speedup(masked)
    small.report.measure_latency()
    assert timed["after"] is small
    assert targets(timed["before"]) == targets(fxcompress.capture(net, x))
    assert torch.equal(timed["before"](x), net(x))
    assert not torch.equal(masked(x), net(x))
    small.report.measure_latency(net)
    assert timed["before"] is net


def test_latency_of_a_module_that_is_gone_asks_for_it() -> None:
    before, after = pair()
    report = make_report(before, after, INPUTS)
    del before
    gc.collect()
    with pytest.raises(
        SpeedupError, match=r"module before the speedup no longer exists.*measure_latency\(before="
    ):
        report.measure_latency(rounds=1)
    assert report.measure_latency(fx.symbolic_trace(Net(8)), rounds=1).latency is not None


def test_a_report_without_modules_says_so() -> None:
    report = Report(Change(0, 0), Change(0, 0), (), (Kept("a", "b"),), ())
    assert report.macs is None
    assert report.parameters.removed == 0
    assert "depends on values" in str(report)
    with pytest.raises(SpeedupError, match="make_report"):
        report.measure_latency()


def test_reports_are_copied_and_pickled(report: Report) -> None:
    assert copy.deepcopy(report) == report
    assert str(pickle.loads(pickle.dumps(report))) == str(report)
