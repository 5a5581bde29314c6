"""The zoo runner: options, selection, records, and one small model end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import zoo, zoo_case
from benchmarks.results_file import GOAL_MISSED, LONG, read_json, write_json
from benchmarks.zoo_case import Row, Settings, run_case

ZOO = """
import torch
from torch import nn

def cases(sets):
    for name in ("tv/small", "tv/broken", "tv/exits", "tv/hangs"):
        yield name, {"broken": broken, "exits": exits, "hangs": hangs}.get(name[3:], small), inputs

def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))

def broken():
    raise ValueError("no such weights\\nsecond line")

def exits():
    import os
    os._exit(7)

def hangs():
    import time
    time.sleep(60)

def inputs():
    return (torch.randn(2, 3, 8, 8),)
"""


class Small(nn.Module):
    """Conv-BatchNorm-ReLU twice, a residual addition, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y: Tensor = self.head((x + self.block(x)).mean((2, 3)))
        return y


def images() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)


def test_options_default_to_every_set_and_resume() -> None:
    options = zoo.parse_options([])
    assert options.sets == ["tv", "timm", "hf"]
    assert (options.jobs, options.fresh, options.retry, options.train) == (1, False, False, False)
    assert options.json == LONG / "zoo.json"
    assert zoo.parse_options(["--per-layer"]).json == LONG / "zoo-per-layer.json"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sparsity", "1.5"], "expected a number between 0 and 1, got 1.5"),
        (["--jobs", "0"], "expected at least 1, got 0"),
        (["--sets", "keras"], "invalid choice: 'keras'"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        zoo.parse_options(arguments)
    assert words in capsys.readouterr().err


def test_patterns_pick_the_classification_convnets_and_nothing_else() -> None:
    wanted = ["tv/alexnet", "tv/vgg11_bn", "tv/resnet18", "tv/wide_resnet50_2", "tv/mobilenet_v3_small"]
    others = ["tv/fcn_resnet50", "tv/vit_b_16", "tv/swin_t", "tv/r3d_18", "timm/densenet121", "tv/maxvit_t"]
    assert zoo.select([*wanted, *others], zoo.CLASSIFICATION_CONVNETS) == wanted
    assert zoo.select(others, ["timm/*", "tv/s*"]) == ["tv/swin_t", "timm/densenet121"]
    assert zoo.select(others, []) == others


def test_summary_counts_goals_and_names_the_worst() -> None:
    rows = [
        Row("a", True, True, 1e-15, 3e-12, 1e-6, 1.0, (100, 50), (10, 4), {"speedup": 2.0}, trains=True),
        Row("b", True, True, 1e-14, None, 1e-3, 1.0, (100, 70), (10, 6), {"speedup": 1.0}),
        Row("c", True, False, 0.5, None, 0.5, obstacle="float64: relative error 5.0e-01"),
        Row("d", obstacle="capture: CaptureError: no"),
    ]
    summary = zoo.summarize(rows)
    assert [summary[key] for key in ("models", "captured", "exact")] == [4, 3, 2]
    assert summary["exact and at least 40 % of parameters removed"] == 1
    assert summary["float32 within 1e-4"] == 1
    assert summary["trains"] == "1 of 1"
    assert summary["worst float64 error"] == ["c", 0.5]
    assert summary["least parameters removed"] == ["b", 0.3]
    assert summary["slowest speedup, s"] == ["a", 2.0]
    assert summary["obstacles"] == {"float64": 1, "capture": 1}


def test_a_record_is_resumed_only_under_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "zoo.json"
    row = Row("tv/a", captured=True, parameters=(4, 2), macs=(2, 1))
    zoo.Record(path, Settings(), fresh=False).add(row)
    assert zoo.Record(path, Settings(), fresh=False).rows == {"tv/a": row}
    assert zoo.Record(path, Settings(train=True), fresh=False).rows == {}
    assert zoo.Record(path, Settings(), fresh=True).rows == {}
    assert [entry.name for entry in tmp_path.iterdir()] == ["zoo.json"]
    recorded = read_json(path)
    assert set(recorded) == {"benchmark", "machine", "settings", "summary", "rows"}
    assert str(Path.home()) not in json.dumps(recorded)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_small_model_goes_through_every_stage(per_layer: bool) -> None:
    row = run_case("tv/small", Small, images, Settings(per_layer=per_layer, train=True))
    assert row.obstacle == ""
    assert row.captured
    assert row.exact
    assert row.error64 is not None
    assert row.error64 <= zoo_case.EXACT64
    assert row.error64_other_batch is not None
    assert row.error64_other_batch <= zoo_case.EXACT64
    assert row.error32 is not None
    assert row.error32 <= zoo_case.EXACT32
    assert row.trains
    assert {"capture", "insert", "speedup", "total"} <= set(row.seconds)
    dense = sum(p.numel() for p in Small().parameters())
    assert row.parameters is not None
    assert row.parameters[0] == dense
    if not per_layer:
        small_stem, small_block, head = 4 * 28 + 8, 8 * (4 * 9 + 1) + 16 + 4 * 9, 5 * 5
        assert row.parameters[1] == small_stem + small_block + head


def test_an_obstacle_names_the_stage_the_error_and_its_first_line() -> None:
    def build() -> nn.Module:
        raise ValueError("no such weights\nsecond line")

    row = run_case("tv/broken", build, images, Settings())
    assert row.obstacle == "build: ValueError: no such weights"
    assert not row.captured


@pytest.mark.slow  # four interpreters that import torch
def test_crashes_and_hangs_are_rows_and_a_second_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo.py").write_text(ZOO, encoding="utf-8")
    result = tmp_path / "out.json"
    arguments = ["--zoo", str(tmp_path), "--sets", "tv", "--json", str(result), "--time-limit", "20"]
    assert zoo.main(arguments) == GOAL_MISSED
    rows = {row["name"]: row for row in read_json(result)["rows"]}
    assert rows["tv/small"]["exact"]
    assert rows["tv/broken"]["obstacle"] == "build: ValueError: no such weights"
    assert rows["tv/exits"]["obstacle"].startswith("crash: exit status 7")
    assert rows["tv/hangs"]["obstacle"] == "time limit: not done after 20 s"

    def no_more_runs(*_: Any) -> Row:
        raise AssertionError("a recorded model was run again")

    monkeypatch.setattr(zoo, "run_in_process", no_more_runs)
    capsys.readouterr()
    assert zoo.main(arguments) == GOAL_MISSED
    assert "4 models, 4 of them already recorded" in capsys.readouterr().out
