"""The real executable: what a good run writes, what a wrong one says, and what an interrupted one leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

import fxcompress
from fxcompress.demo_result import DemoResult, Measured

FXCOMPRESS = Path(sys.executable).with_name("fxcompress")
FILES = ["dense.onnx", "dense.pt2", "small.onnx", "small.pt2"]
TIMEOUT = 300


def run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``fxcompress`` in ``cwd``, with the modules in the folder ``path`` before all others."""
    env = {**os.environ, "COLUMNS": "100"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run(
        [FXCOMPRESS, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=TIMEOUT
    )


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr of a run that failed with exit code 1."""
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("fxcompress: error: ")
    return line


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, run("demo", "--quick", "--json", "figures.json", cwd=folder)


def test_the_demo_writes_models_that_load_and_run(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in (folder / "demo").iterdir()) == FILES
    dense, small = (fxcompress.load(folder / "demo" / f"{name}.pt2") for name in ("dense", "small"))
    assert small(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    removed = 1 - sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in dense.parameters())
    assert 0.7 < removed < 0.8  # half of the channels on both sides of nearly every weight


def test_the_demo_prints_and_records_the_same_figures(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
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


def test_a_wrong_value_is_one_line_before_any_training(tmp_path: Path) -> None:
    line = error_line(run("demo", "--sparsity", "1.5", cwd=tmp_path))
    assert "sparsity: expected a number in [0, 1), got 1.5" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    assert "--out taken: cannot make this folder" in error_line(run("demo", "--out", "taken", cwd=tmp_path))


def test_a_missing_folder_for_json_is_one_line_before_any_training(tmp_path: Path) -> None:
    assert "nowhere does not exist" in error_line(run("demo", "--json", "nowhere/x.json", cwd=tmp_path))


def test_missing_scikit_learn_names_the_command_that_installs_it(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow" / "sklearn"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'sklearn'\")\n")
    done = run("demo", "--out", "models", cwd=tmp_path, path=shadow.parent)
    assert "pip install fxcompress[demo]" in error_line(done)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(tmp_path: Path, place: str) -> None:
    wrong = ["demo", "--sparsity", "-1"]
    done = run(*(["--debug", *wrong] if place == "before" else [*wrong, "--debug"]), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["dmeo"], "invalid choice: 'dmeo'"),
        (["demo", "--epoch", "x"], "expected a whole number of at least 1, got 'x'"),
        (["demo", "--epochs", "0"], "expected a whole number of at least 1, got '0'"),
        (["demo", "--speed"], "unrecognized arguments: --speed"),
    ],
)
def test_wrong_usage_exits_with_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_printed_by_the_module_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxcompress", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout == f"fxcompress {fxcompress.__version__}\n"


def test_an_interrupted_demo_leaves_complete_files_only(tmp_path: Path) -> None:
    """Interrupted as soon as something is being written: whatever has a model's name can be read."""
    # A run in the background of a shell ignores the signal, and so would its children.
    restore = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [FXCOMPRESS, "demo", "--quick"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore,
    )
    folder = tmp_path / "demo"
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until and process.poll() is None:
        if folder.is_dir() and any(folder.iterdir()):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    assert errors.strip() == "fxcompress: interrupted; files written so far are complete"
    assert {path.name for path in folder.rglob("*") if path.is_file()} < set(FILES)
    for path in folder.glob("*.pt2"):
        assert zipfile.ZipFile(path).testzip() is None
        fxcompress.load(path)


def test_a_slower_result_is_called_slower() -> None:
    one = Measured(0.9, 0.9, 10, 10, 10, 10, 1.0, 1.0)
    cells = [list(c.cells) for c in DemoResult(one, one, 1.25, 0.5, 64, {}).table().columns]
    assert cells[-1][-2:] == ["1.2× slower", "2.0× faster"]
