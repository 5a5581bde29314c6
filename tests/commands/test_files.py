"""The commands on models and model files, good and bad, through the real executable."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fxcompress
from fxcompress.cli import main
from fxcompress.pruning import get_masks
from tests.commands.executable import error_line, facts, message, project, run
from tests.commands.project.task import make

SPECS = ["--input", "2x1x8x8"]
X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, with a masked model, its masks, weights of another width and an array."""
    folder = project(tmp_path_factory.mktemp("files"))
    masked = fxcompress.compile(make().eval(), [{"sparsity": 0.5, "op_names": ["conv1"]}], X[:2])
    fxcompress.save(masked, folder / "masked.pt2")
    fxcompress.save_masks(get_masks(masked), folder / "masks.safetensors")
    fxcompress.save(fxcompress.speedup(masked), folder / "small.pt2")
    torch.save(make(8).state_dict(), folder / "narrow.pt")
    np.save(folder / "x.npy", X.numpy())
    (folder / "prune.toml").write_text('[[config]]\nsparsity = 0.5\nop_names = ["conv*"]\n')
    return folder


@pytest.fixture
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project, in this process; the modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("task", None)


def test_inspect_counts_layers_and_groups_channels(folder: Path) -> None:
    found = facts(run("inspect", "task:make", *SPECS, "--json", cwd=folder))
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["conv1"] == {
        "name": "conv1",
        "type": "Conv2d",
        "parameters": 16 * 16 * 9 + 16,
        "macs": 64 * 16 * 16 * 9,
        "output": ["n", 16, 8, 8],
    }
    assert list(layers) == ["stem", "bn", "conv1", "conv2", "head"]
    assert sum(layer["parameters"] for layer in layers.values()) == found["parameters"]
    assert sum(layer["macs"] for layer in layers.values()) == found["macs"]
    assert found["operators"]["conv2d"] == 3
    assert found["operators"]["add"] == 1
    groups = [(group["layers"], group["channels"], group["free"]) for group in found["groups"]]
    assert groups == [(["stem", "conv2"], 16, 16), (["conv1"], 16, 16), (["head"], 10, 0)]
    assert found["groups"][-1]["reason"] == "model output (head)"


def test_inspect_refuses_what_names_no_model(tmp_path: Path) -> None:
    line = error_line(run("inspect", "resnet", cwd=tmp_path))
    assert "'resnet': expected package.module:name, such as models.resnet:make" in line


def test_explain_says_what_the_config_selects(folder: Path) -> None:
    found = facts(run("explain", "task:make", "--config", "prune.toml", "--json", cwd=folder))
    rows = {row["name"]: row for row in found["rows"]}
    assert {"key": "sparsity", "value": 0.5, "entry": 0} in rows["conv2"]["settings"]
    assert rows["stem"]["reason"] == "in no entry's scope"


def test_explain_refuses_a_file_that_is_no_toml(tmp_path: Path) -> None:
    (tmp_path / "prune.toml").write_text("[[config]]\nsparsity 0.5\n")
    line = error_line(run("explain", "task:make", "--config", "prune.toml", cwd=tmp_path))
    assert line.startswith("fxcompress: error: prune.toml: Expected '='")
    assert "line 2" in line


def test_speedup_removes_what_a_mask_file_says(folder: Path) -> None:
    arguments = ["--masks", "masks.safetensors", *SPECS, "--out", "again.pt2", "--json"]
    found = facts(run("speedup", "task:make", *arguments, cwd=folder))
    removed = 8 * 16 * 9 + 8 + 16 * 8 * 9
    assert found["report"]["parameters"]["before"] - found["report"]["parameters"]["after"] == removed
    again, small = (fxcompress.load(folder / name).eval() for name in ("again.pt2", "small.pt2"))
    assert torch.allclose(again(X), small(X), rtol=0, atol=1e-6)


def test_speedup_says_before_the_work_where_it_cannot_write(folder: Path) -> None:
    line = error_line(run("speedup", "masked.pt2", "--out", "nowhere/small.pt2", cwd=folder))
    assert "cannot write nowhere/small.pt2: the folder nowhere does not exist; create it first" in line


def test_export_run_and_bench_agree_on_the_numbers(folder: Path) -> None:
    exported = facts(run("export", "small.pt2", "--out", "small.onnx", "--json", cwd=folder))
    assert exported["bytes"] == (folder / "small.onnx").stat().st_size
    assert exported["batches"] == [2, 3]
    assert exported["max_relative_difference"] < 1e-4
    ran = facts(run("run", "small.onnx", "--input", "x.npy", "--out", "y.npz", "--json", cwd=folder))
    (output,) = ran["outputs"]
    expected = fxcompress.load(folder / "small.pt2").eval()(X).detach().numpy()
    (array,) = np.load(folder / "y.npz").values()
    assert np.abs(array - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (output["shape"], output["greatest"]) == ([3, 10], float(array.max()))
    arguments = ["small.pt2", "small.onnx", "--rounds", "4", "--json"]
    first, second = facts(run("bench", *arguments, cwd=folder))["files"]
    assert (first["runtime"], second["runtime"]) == ("PyTorch", "onnxruntime")
    assert first["ratio"] == 1
    for timed in (first, second):
        assert 0 < timed["lower"] <= timed["median"] <= timed["upper"]
        assert timed["runs"] == 4


def test_model_files_that_are_none_are_refused(folder: Path) -> None:
    line = error_line(run("export", "small.pt2", "--out", "small.pt2", cwd=folder))
    assert line.endswith("small.pt2: expected a name that ends with .onnx")
    assert error_line(run("run", "none.onnx", cwd=folder)).endswith("none.onnx: there is no such file")
    assert error_line(run("bench", "x.npy", cwd=folder)).endswith("x.npy: expected an .onnx or .pt2 file")


def test_sensitivity_measures_resumes_and_proposes(folder: Path) -> None:
    arguments = ["--evaluator", "task:score", *SPECS, "--sparsities", "0.5", "--json"]
    (folder / "sensitivity.csv").write_text("layer,0.0,0.5\nstem,7.5,7.0\n")
    proposal = ["--parameters", "0.9", "--config", "proposed.json"]
    found = facts(run("sensitivity", "task:make", *arguments, *proposal, cwd=folder))
    assert found["results"]["stem"] == {"0": 7.5, "0.5": 7.0}  # read, not measured again
    assert list(found["results"]) == ["stem", "conv1", "conv2", "head"]
    lines = (folder / "sensitivity.csv").read_text().splitlines()
    assert lines[:2] == ["layer,0.0,0.5", "stem,7.5,7.0"]
    assert len(lines) == 5
    assert json.loads((folder / "proposed.json").read_text())["config"] == found["config"]


def test_sensitivity_refuses_a_proposal_without_a_budget(folder: Path) -> None:
    arguments = ["--evaluator", "task:score", "--config", "x.json"]
    line = error_line(run("sensitivity", "task:make", *arguments, cwd=folder))
    assert "--config: there is no config list to write without --parameters" in line


@pytest.mark.usefixtures("_here")
def test_an_interrupted_sensitivity_analysis_keeps_what_was_measured() -> None:
    arguments = ["--evaluator", "task:interrupted_score", "--sparsities", "0.25,0.5", "--out", "part.csv"]
    assert main(["sensitivity", "small.pt2", *arguments]) == 130
    header, row = Path("part.csv").read_text().splitlines()
    assert header == "layer,0.0,0.25"
    assert row.startswith("stem,-")
    assert row.count(",") == 2


@pytest.mark.usefixtures("_here")
def test_weights_that_do_not_fit_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    told = message(capsys, "inspect", "task:make", *SPECS, "--weights", "narrow.pt").splitlines()
    assert told[0] == "narrow.pt does not fit the model:"
    assert told[1] == "  stem.weight: expected shape (16, 1, 3, 3), got (8, 1, 3, 3)"
    assert told[-1] == "  and 5 more"
    torch.save({"state_dict": {"sten.weight": torch.ones(1)}}, "other.pt")
    told = message(capsys, "inspect", "task:make", *SPECS, "--weights", "other.pt").splitlines()
    assert told[1] == "  the file lacks 'stem.weight'; did you mean 'sten.weight'?"
    told = [message(capsys, "inspect", "task:make", "--weights", name) for name in ("gone.pt", "x.npy")]
    assert told[0] == "--weights gone.pt: there is no such file"
    assert told[1].startswith("--weights x.npy: cannot be read (")


@pytest.mark.usefixtures("_here")
def test_weights_that_fit_are_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model-args", '{"width": 8}', "--weights", "narrow.pt", *SPECS, "--out", "narrow.onnx"]
    assert main(["export", "task:Net", *arguments]) == 0
    assert "inputs x, batch open" in capsys.readouterr().out
    assert main(["run", "narrow.onnx", "--input", "x.npy", "--out", "narrow.npz"]) == 0
    (array,) = np.load("narrow.npz").values()
    with torch.no_grad():
        expected = make(8).eval()(X).numpy()
    assert np.abs(array - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tsk:make"], "there is no module 'tsk' in the current folder and what is installed; did you mean"),
        (["task:mak"], "task:mak: task has no 'mak'; did you mean 'make'"),
        (["task:number"], "task:number: expected a torch.nn.Module, or a class or function that makes"),
        (["task:batches"], "task:batches returned generator; expected a torch.nn.Module"),
        (["task:make", "--model-args", '{"widht": 3}'], "task:make raised TypeError: make() got"),
        (["task:net", "--model-args", "{}"], "--model-args: task:net is a model already; leave it out"),
        (["task:make", "--input", "2x3x8x8"], "Net does not run on the example inputs at "),
        (["task:make", "--input", "gone.npy"], "--input gone.npy: cannot be read as arrays ("),
        (["task:make", "--input", "x=2x1x8x8", "--input", "2x1x8x8"], "--input: expected names for all"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert message(capsys, "inspect", *arguments).startswith(told)


@pytest.mark.usefixtures("_here")
def test_arguments_of_functions_are_translated_to_options(capsys: pytest.CaptureFixture[str]) -> None:
    told = message(capsys, "inspect", "task:make", "--input", "2x3x8x8").splitlines()
    assert told[-1] == "  On the command line: --input 2x3x224x224."


@pytest.mark.usefixtures("_here")
def test_inputs_of_the_wrong_shape_are_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    told = message(capsys, "run", "small.pt2", "--input", "2x3x8x8")
    assert told.startswith("small.pt2 does not run on inputs of (2, 3, 8, 8): ")
    assert told.endswith("give others with --input")


@pytest.mark.usefixtures("_here")
def test_layers_of_attention_are_listed_with_the_batch_wherever_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    width = '{"d_model": 16, "nhead": 2, "dim_feedforward": 32, "batch_first": true}'
    arguments = ["--model-args", width, "--input", "2x5x16", "--json"]
    assert main(["inspect", "torch.nn:TransformerEncoderLayer", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["linear1"]["output"] == ["n", 5, 32]
    assert layers["self_attn"]["output"] == [5, "n", 48]
    assert layers["self_attn.out_proj"]["output"] == ["5n", 16]
    assert layers["scaled_dot_product_attention"]["macs"] == 2 * 2 * 5 * 5 * 8
    assert sum(layer["parameters"] for layer in layers.values()) == found["parameters"]
    assert {"layers": ["linear1"], "channels": 32, "free": 32, "reason": None} in found["groups"]


@pytest.mark.usefixtures("_here")
def test_tables_hold_the_same_facts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "small.pt2"]) == 0
    told = capsys.readouterr().out
    row: Any = next(line.split() for line in told.splitlines() if line.startswith("conv1 "))
    assert row == ["conv1", "Conv2d", "n×8×8×8", "1,160", f"{64 * 16 * 8 * 9:,}"]
    assert main(["run", "small.pt2", "--input", "x=3x1x8x8"]) == 0
    assert "3×10" in capsys.readouterr().out
