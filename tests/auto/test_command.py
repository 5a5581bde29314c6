"""``fxcompress search``: what it hands on, what a wrong call says, and the whole of it on digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxcompress.auto import AutoCompressionExperiment, digits
from fxcompress.cli import main, make_parser
from fxcompress.commands.search import _space

ALGORITHMS = "level,l1,fpgm,taylorfo,qat"
PLACE = "fxcompress.auto.digits"


def test_a_space_is_made_of_names_of_algorithms() -> None:
    options = make_parser().parse_args(["search", "m:f", "--algorithms", "l1,qat", "--bits", "4,8"])
    pruner, quantizer = (g["algorithm_name"]["_value"] for g in _space(options)["compressor_type"]["_value"])
    uniform = {"_type": "uniform", "_value": [0.1, 0.9]}
    assert pruner[0]["config_list"] == [{"op_types": ["default"], "sparsity": uniform}]
    assert quantizer[0]["config_list"][0]["quant_bits"] == {"_type": "choice", "_value": [4, 8]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tests.auto.task:model"], "--evaluator: expected the place of a function"),
        (["tests.auto.task"], "'tests.auto.task': expected package.module:name"),
        (
            ["no.such:model", "--evaluator", "a:b"],
            "there is no module 'no'",
        ),
        (["tests.auto.task:Task", "--algorithms", "l1,l9"], "got 'l9'"),
        (["tests.auto.task:Task", "--space", "wrong.json"], "search space wrong.json: expected JSON"),
        (["tests.auto.task:model", "--evaluator", "m:f", "--budget", "mac=1"], "did you mean 'macs'"),
        (["tests.auto.task:model", "--evaluator", "m:f", "--minimize"], "for classes"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "wrong.json").write_text("{")
    assert main(["search", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.slow
def test_twenty_trials_on_digits_find_a_third_of_the_macs_at_dense_accuracy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxcompress", "search", f"{PLACE}:DigitsModule"]
    command += ["--algorithms", ALGORITHMS, "--budget", "macs=0.35", "--workers", "2", "--out", "found"]
    root = str(Path(__file__).parent.parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found" / "trials.json").read_text())
    assert [row["state"] for row in found["trials"]] == ["complete"] * 20
    assert len({row["params"]["algorithm"] for row in found["trials"]}) >= 4
    (best,) = (row for row in found["trials"] if row["number"] in found["front"])
    assert best["metric"] >= found["dense"]["metric"] - 0.01
    assert best["shares"]["macs"] <= 0.35


@pytest.mark.slow
def test_the_same_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = make_parser().parse_args(["search", "m:f", "--algorithms", ALGORITHMS])
    experiment = AutoCompressionExperiment(digits.DigitsModule, "local")
    experiment.config.trial_concurrency = 2
    experiment.config.search_space = _space(options)
    experiment.config.budget = {"macs": 0.35}
    result = experiment.run()
    assert len(result.trials) == 20
    assert (result.best.metric or 0.0) >= result.dense["metric"] - 0.01
    assert result.best.shares["macs"] <= 0.35
