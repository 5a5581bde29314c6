"""``fxcompress compress``: prune, train, speed up, quantize, export; and what a failed run leaves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress
from fxcompress.cli import main
from fxcompress.commands.compress import split
from fxcompress.pruning import get_masks
from tests.commands.executable import Done, error_line, facts, interrupted, message, project, run, usage
from tests.commands.project.task import make, score

TOML = """
[[config]]
sparsity = 0.5
op_types = ["Conv2d"]

[[config]]
quant_bits = 8
quantizer = "ptq"
"""
CURVES = "layer,0.0,0.5\nconv1,-1.5,-1.75\nhead,-1.5,\n"
SMALL = 8 * 9 + 8 + 2 * 8 + 2 * (8 * 8 * 9 + 8) + 8 * 10 + 10
"""Parameters of ``task.Net(16)`` with half of its channels."""
MACS = 64 * (8 * 9 + 2 * 8 * 8 * 9) + 8 * 10


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = project(tmp_path_factory.mktemp("compress"))
    (folder / "both.toml").write_text(TOML)
    (folder / "curves.csv").write_text(CURVES)
    arguments = ["--config", "both.toml", "--data", "task:batches", "--train", "task:tune", "--rounds", "3"]
    arguments += ["--evaluator", "task:score", "--sensitivity", "curves.csv"]
    done = run("compress", "task:make", "--input", "2x1x8x8", *arguments, "--json", cwd=folder)
    return folder, done


def test_one_json_object_on_stdout_and_the_steps_on_stderr(compressed: tuple[Path, Done]) -> None:
    folder, done = compressed
    found = facts(done)
    assert found == json.loads((folder / "compressed" / "report.json").read_text())
    steps = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert steps[2] == "[3] evaluate before: task:score"
    assert steps[4:6] == ["[5] train under masks: task:tune", "[6] speed up, verify in float64"]
    assert len(steps) == 11
    assert "training" in done.stderr.splitlines()  # what one's own code prints


def test_the_figures_are_those_of_half_the_channels(compressed: tuple[Path, Done]) -> None:
    found = facts(compressed[1])
    dense = 16 * 9 + 16 + 2 * 16 + 2 * (16 * 16 * 9 + 16) + 16 * 10 + 10
    assert (found["report"]["parameters"]["before"], found["report"]["parameters"]["after"]) == (dense, SMALL)
    assert found["report"]["macs"]["after"] == MACS
    assert found["report"]["kept"] == []
    assert found["quantized"] is True
    for runtime in ("PyTorch", "onnxruntime"):
        assert found["latency"][runtime]["after"]["runs"] == 3
        assert found["latency"][runtime]["before"]["median"] > 0


def test_the_files_are_the_quantized_model(compressed: tuple[Path, Done]) -> None:
    folder, done = compressed
    out = folder / "compressed"
    assert sorted(path.name for path in out.iterdir()) == [
        "masked.pt2",
        "page.html",
        "page.json",
        "report.json",
        "small.onnx",
        "small.pt2",
    ]
    final = fxcompress.load(out / "small.pt2")
    assert final.get_submodule("conv1").get_parameter("weight").shape == (8, 8, 3, 3)
    assert final(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    masks = get_masks(fxcompress.load(out / "masked.pt2"))
    assert int(masks["conv1"]["weight"].sum()) == 8 * 16 * 9
    onnx = facts(done)["onnx"]
    assert onnx["bytes"] == (out / "small.onnx").stat().st_size
    assert [operator["reason"] for operator in onnx["operators"]] == [None] * len(onnx["operators"])
    assert onnx["parity"] is None or onnx["parity"]["mismatches"] == 0


def test_training_trained_the_weights_that_are_written(compressed: tuple[Path, Done]) -> None:
    masked = fxcompress.load(compressed[0] / "compressed" / "masked.pt2")
    small = fxcompress.load(compressed[0] / "compressed" / "small.pt2")
    start = make().state_dict()
    assert not torch.equal(masked.state_dict()["head.weight"], start["head.weight"])
    assert not torch.equal(masked.state_dict()["bn.running_mean"], start["bn.running_mean"])
    assert small.training is masked.training is False


def test_an_interrupt_in_training_leaves_what_was_there(compressed: tuple[Path, Done]) -> None:
    folder = compressed[0]
    before = {path.name: path.read_bytes() for path in (folder / "compressed").iterdir()}
    arguments = ["--config", "both.toml", "--data", "task:batches", "--train", "task:tune_for_long"]
    arguments += ["--no-onnx"]
    done = interrupted("compress", "task:make", *arguments, cwd=folder, when=folder / "training")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "fxcompress: interrupted; files written so far are complete"
    assert {path.name: path.read_bytes() for path in (folder / "compressed").iterdir()} == before


def test_a_missing_config_file_is_one_line(tmp_path: Path) -> None:
    line = error_line(run("compress", "task:make", "--config", "prune.toml", cwd=tmp_path))
    assert line == "fxcompress: error: prune.toml: cannot be read (No such file or directory)"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project, current and importable; the modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(project(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "prune.json").write_text('[{"sparsity": 0.5, "op_types": ["Conv2d"]}]')
    both = [{"sparsity": 0.5, "op_types": ["Conv2d"]}, {"quant_bits": 8, "quantizer": "ptq"}]
    (tmp_path / "both.json").write_text(json.dumps(both))
    (tmp_path / "quantize.yaml").write_text("config:\n- quant_bits: 8\n  quantizer: ptq\n")
    yield tmp_path
    sys.modules.pop("task", None)


def test_pruning_alone_prints_a_comparison(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "prune.json", "--no-onnx", "--no-page", "--rounds", "0", "--out", "made/here"]
    assert main(["compress", "task:make", "--model-args", '{"width": 12}', *arguments]) == 0
    told = capsys.readouterr().out
    after = 6 * 9 + 6 + 2 * 6 + 2 * (6 * 6 * 9 + 6) + 6 * 10 + 10
    row = next(line.split() for line in told.splitlines() if line.startswith("parameters") and "×" in line)
    assert row[2] == str(after)
    assert told.splitlines()[-1] == "written: made/here/small.pt2, made/here/report.json"
    assert sorted(path.name for path in (folder / "made" / "here").iterdir()) == ["report.json", "small.pt2"]


def test_the_page_shows_what_rounding_costs(compressed: tuple[Path, Done]) -> None:
    out = compressed[0] / "compressed"
    page, data = (out / "page.html").read_text(encoding="utf-8"), json.loads((out / "page.json").read_text())
    assert "conv1" in page
    assert data["sqnr"]
    assert data["onnx"]
    assert data["missing"] == []


def test_the_page_shows_the_curves_and_the_metric_of_the_command(compressed: tuple[Path, Done]) -> None:
    folder, done = compressed
    data = json.loads((folder / "compressed" / "page.json").read_text())
    assert data["sensitivity"] == {"conv1": {"0.0": -1.5, "0.5": -1.75}, "head": {"0.0": -1.5}}
    assert data["totals"][0]["name"] == "score"
    assert facts(done)["metrics"] == {"score": [data["totals"][0]["before"], data["totals"][0]["after"]]}
    final = fxcompress.load(folder / "compressed" / "small.pt2").eval()
    assert data["totals"][0]["before"] == pytest.approx(score(make().eval()))
    assert data["totals"][0]["after"] == pytest.approx(score(final))


def test_latencies_of_the_page_are_those_of_the_report(compressed: tuple[Path, Done]) -> None:
    data = json.loads((compressed[0] / "compressed" / "page.json").read_text())
    timed = {t["name"]: (t["before"], t["after"]) for t in data["totals"] if t["unit"] == "s"}
    latency = facts(compressed[1])["latency"]
    assert timed == {
        f"latency in {runtime}": tuple(latency[runtime][when]["median"] for when in ("before", "after"))
        for runtime in ("PyTorch", "onnxruntime")
    }
    told = ["Latency in PyTorch", "Latency in onnxruntime", "Latency by layer"]
    assert [sentence.partition(":")[0] for sentence in data["timing"]] == told
    assert latency["onnxruntime"]["ratio_to_float32"] > 0


@pytest.mark.usefixtures("folder")
def test_sensitivity_is_measured_where_there_is_no_file_yet() -> None:
    arguments = ["--no-onnx", "--rounds", "0", "--evaluator", "task:score", "--sensitivity", "curves.csv"]
    assert main(["compress", "task:make", "--config", "prune.json", *arguments]) == 0
    data = json.loads(Path("compressed", "page.json").read_text())
    assert set(data["sensitivity"]) == {"stem", "conv1", "conv2", "head"}
    assert data["sensitivity"]["conv1"]["0.0"] == pytest.approx(score(make().eval()), rel=1e-5)
    header, *rows = Path("curves.csv").read_text().splitlines()
    assert header.split(",")[:2] == ["layer", "0.0"]
    assert len(rows) == 4


def test_without_the_extra_the_page_says_what_it_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fxcompress.commands.compress.find_spec", lambda name: None)
    assert main(["compress", "task:make", "--config", "prune.json", "--no-onnx", "--rounds", "0"]) == 0
    assert "page.html: not written; pip install 'fxcompress[report]' for it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config", "prune.json", "--train", "task:tune_badly"],
         "task:tune_badly raised ValueError: no such optimizer (task.py, line "),
        (["--config", "prune.json", "--sensitivity", "curves.csv"],
         "--sensitivity: there is no curves.csv; add --evaluator to measure it first"),
        (["--config", "prune.json", "--train", "task:tuned"],
         "task:tuned: task has no 'tuned'; did you mean 'tune'"),
        (["--config", "quantize.yaml", "--train", "task:tune"],
         "--train: no entry of quantize.yaml has sparsity; leave it out, or add one"),
        (["--config", "quantize.yaml", "--data", "task:number"],
         "task:number: expected batches or a function that returns them, got int"),
        (["--config", "both.json", "--train", "task:tune"],
         "'stem_input': this quantizer has seen no values yet"),
        (["--config", "prune.json", "--out", "task.py"],
         "cannot write into task.py: File exists; name another folder"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("folder")
def test_what_fails_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert main(["compress", "task:make", "--no-onnx", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    line, *hint = [line for line in output.err.splitlines() if not line.startswith("[")]
    assert len(hint) <= 1
    assert line.startswith(f"fxcompress: error: {told}")
    assert not Path("compressed").exists()


@pytest.mark.usefixtures("folder")
def test_config_errors_name_file_entry_and_key(capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.toml").write_text(
        "[[config]]\nsparsity = 50\nop_types = ['Conv2d']\n[[config]]\nsparsty = 0.5\n"
    )
    told = message(capsys, "compress", "task:make", "--config", "wrong.toml")
    assert told.splitlines() == [
        "wrong.toml: 2 problems in config_list:",
        "  config_list[0]: sparsity: expected a number in [0, 1), got 50; write 0.5 for 50 %",
        "  config_list[1]: sparsty: unknown key; did you mean 'sparsity'?",
    ]
    Path("name.toml").write_text("[[config]]\nsparsity = 0.5\nop_names = ['conv3']\n")
    told = message(capsys, "compress", "task:make", "--config", "name.toml")
    assert told.startswith("name.toml: config_list[0]: op_names: 'conv3' matches nothing; did you mean 'conv")
    Path("idle.toml").write_text("[[config]]\nexclude = true\nop_names = ['stem']\n")
    told = message(capsys, "compress", "task:make", "--config", "idle.toml")
    assert told == "idle.toml: no entry prunes or quantizes; add sparsity or quant_bits to one"


def test_a_missing_config_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert "the following arguments are required: --config" in usage(capsys, "compress", "task:make")
    told = usage(capsys, "compress", "task:make", "--config", "x.toml", "--model-args", "[1]")
    assert "--model-args: expected a JSON object such as" in told


def test_the_config_list_is_split_by_stage() -> None:
    both: dict[str, Any] = {"op_types": ["Linear"], "sparsity": 0.5, "quant_bits": 4}
    out: dict[str, Any] = {"exclude": True, "op_names": ["head"]}
    config = [both, {"quant_bits": 8}, out]
    pruning, quantization = split(config)
    assert pruning == [{"op_types": ["Linear"], "sparsity": 0.5}, out]
    assert quantization == [{"op_types": ["Linear"], "quant_bits": 4}, {"quant_bits": 8}, out]
    assert split([{"sparsity": 0.5}, out])[1] == []
