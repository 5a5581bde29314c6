"""``fxcompress demo``: what a good run writes, what a wrong one says, what an interrupted one leaves."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import fxcompress
from fxcompress.demo_result import DemoResult, Measured
from tests.commands.executable import Done, error_line, interrupted, message, run, usage

FILES = ["dense.onnx", "dense.pt2", "small.onnx", "small.pt2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run("demo", "--quick", "--json", "figures.json", cwd=folder)


def test_the_demo_writes_models_that_load_and_run(demo: tuple[Path, Done]) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in (folder / "demo").iterdir()) == FILES
    dense, small = (fxcompress.load(folder / "demo" / f"{name}.pt2") for name in ("dense", "small"))
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    removed = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    assert 0.7 < removed < 0.8  # half of the channels on both sides of nearly every weight


def test_the_demo_prints_and_records_the_same_figures(demo: tuple[Path, Done]) -> None:
    folder, done = demo
    figures = json.loads((folder / "figures.json").read_text())
    for row in ("accuracy, PyTorch", "accuracy, onnxruntime", "MACs per image", "ONNX file, bytes"):
        assert row in done.stdout
    for name, column in (("dense", "before"), ("small", "after")):
        assert f"{figures[column]['parameters']:,}" in done.stdout
        assert figures[column]["bytes_pt2"] == (folder / "demo" / f"{name}.pt2").stat().st_size
        assert figures[column]["accuracy"] == pytest.approx(figures[column]["accuracy_onnx"], abs=0.01)
        assert figures[column]["seconds_torch"] > 0
    assert figures["after"]["macs"] < 0.35 * figures["before"]["macs"]
    assert figures["options"]["quick"] is True
    assert "It is in demo/small.pt2" in done.stdout


@pytest.fixture
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_empty_folder")
def test_what_cannot_be_done_is_said_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = message(capsys, "demo", "--sparsity", "1.5")
    assert told.startswith("config_list[0]: sparsity: expected a number in [0, 1), got 1.5")
    told = message(capsys, "demo", "--json", "nowhere/x.json")
    assert told == "--json nowhere/x.json: the folder nowhere does not exist; create it"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").write_text("a file")
    assert "--out taken: cannot make this folder" in message(capsys, "demo", "--out", "taken")


@pytest.mark.parametrize("amount", ["x", "0"])
def test_wrong_usage_says_what_was_expected(capsys: pytest.CaptureFixture[str], amount: str) -> None:
    told = usage(capsys, "demo", "--epochs", amount)
    assert f"argument --epochs: expected a whole number of at least 1, got {amount!r}" in told


@pytest.mark.usefixtures("_empty_folder")
def test_missing_scikit_learn_names_the_command_that_installs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)  # as if it were not installed
    assert "pip install fxcompress[demo]" in message(capsys, "demo", "--out", "models")
    assert not (tmp_path / "models").exists()


def test_a_wrong_value_is_one_line(tmp_path: Path) -> None:
    line = error_line(run("demo", "--json", "nowhere/x.json", cwd=tmp_path))
    assert line.endswith("--json nowhere/x.json: the folder nowhere does not exist; create it")


def test_an_interrupted_demo_leaves_complete_files_only(tmp_path: Path) -> None:
    """Interrupted as soon as something is being written: whatever has a model's name can be read."""
    folder = tmp_path / "demo"
    done = interrupted("demo", "--quick", cwd=tmp_path, when=folder)
    assert done.returncode == 130
    assert done.stderr.strip() == "fxcompress: interrupted; files written so far are complete"
    assert {path.name for path in folder.rglob("*") if path.is_file()} < set(FILES)
    for path in folder.glob("*.pt2"):
        assert zipfile.ZipFile(path).testzip() is None
        fxcompress.load(path)


def test_a_slower_result_is_called_slower() -> None:
    one = Measured(0.9, 0.9, 10, 10, 10, 10, 1.0, 1.0)
    cells = [list(c.cells) for c in DemoResult(one, one, 1.25, 0.5, 64, {}).table().columns]
    assert cells[-1][-2:] == ["1.2× slower", "2.0× faster"]
