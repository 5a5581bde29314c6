"""The seeds' experiment on a small task, with its dashboard; the short way, and Optuna's pruners."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path

import pytest
import torch

import fxcompress
from fxcompress.auto import AutoCompressionExperiment, AutoCompressionSearchSpaceGenerator, search
from fxcompress.auto.dashboard import HOST, Dashboard
from fxcompress.auto.study import open_storage
from fxcompress.errors import ConfigError, FxcompressError
from tests.auto import task


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answer(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as reply:
        assert reply.status == 200
        content: bytes = reply.read()
        return content


def test_an_experiment_of_the_seeds_runs_and_serves_its_study(tmp_path: Path) -> None:
    generator = AutoCompressionSearchSpaceGenerator()
    uniform = {"_type": "uniform", "_value": [0.3, 0.7]}
    generator.add_config("l1", [{"op_types": ["Conv2d"], "sparsity": uniform}])
    generator.add_config("qat", [{"op_types": ["Conv2d", "Linear"], "quant_bits": 8}])
    experiment = AutoCompressionExperiment(task.Task, "local")
    config = experiment.config
    config.experiment_name = "an experiment"
    config.trial_concurrency = 1
    config.max_trial_number = 2
    config.search_space = generator.dumps()
    config.trial_code_directory = tmp_path
    config.tuner.name = "TPE"
    config.tuner.class_args["optimize_mode"] = "maximize"
    config.training_service.use_active_gpu = True
    port = free_port()
    try:
        result = experiment.run(port)
        assert b"<html" in answer(f"http://{HOST}:{port}/dashboard/").lower()
        studies = json.loads(answer(f"http://{HOST}:{port}/api/studies"))
        assert "an experiment" in json.dumps(studies)
    finally:
        experiment.stop()
    assert [row.state for row in result.trials] == ["complete"] * 2
    assert result.best.metric == max(row.metric or 0.0 for row in result.trials if row.metric is not None)
    best = tmp_path / "search" / "best"
    loaded = fxcompress.load(best / "small.pt2")
    assert task.evaluate(loaded) == result.best.metric
    assert json.loads((best / "config.json").read_text()) == result.config_list
    torch.testing.assert_close(loaded(task.inputs()), result.model(task.inputs()), rtol=0, atol=0)


def test_a_port_that_is_taken_is_an_error_that_says_so(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "study.log"))
    dashboard = Dashboard(storage, 0)
    try:
        taken = int(dashboard.url.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(FxcompressError, match=rf"port {taken}: the dashboard cannot be served there"):
            Dashboard(storage, taken)
    finally:
        dashboard.stop()
    with pytest.raises(ConfigError, match="port: expected a number from 0 to 65535, got 70000"):
        Dashboard(storage, 70000)


def test_an_experiment_needs_a_space_and_this_machine() -> None:
    with pytest.raises(ConfigError, match="platform: expected 'local', got 'remote'"):
        AutoCompressionExperiment(task.Task, "remote")
    with pytest.raises(
        ConfigError, match=r"config.search_space: expected what a generator's dumps\(\) gives"
    ):
        AutoCompressionExperiment(task.Task).run()


@pytest.mark.slow
def test_a_pruner_of_optuna_gives_trials_up(tmp_path: Path) -> None:
    options = {"upper": -1e9}  # no metric is that low
    result = search(
        task.model(), task.evaluate, trials=2, algorithms=["l1"], inputs=task.inputs(), train=task.tune,
        folder=tmp_path, pruner="threshold", pruner_options=options, sensitivity=False,
    )  # fmt: skip
    assert [row.state for row in result.trials] == ["pruned"] * 2
    with pytest.raises(FxcompressError, match="none of 2 trials succeeded"):
        _ = result.best


@pytest.mark.slow
def test_several_objectives_leave_a_front(tmp_path: Path) -> None:
    result = search(
        "tests.auto.task:model", "tests.auto.task:evaluate", trials=4, workers=2, algorithms=["l1", "qat"],
        inputs="tests.auto.task:inputs", data="tests.auto.task:batches", train="tests.auto.task:tune",
        objectives=["size"], folder=tmp_path, storage=str(tmp_path / "study.log"), bits=(8, 4),
    )  # fmt: skip
    assert [row.state for row in result.trials] == ["complete"] * 4
    sizes = {row.number: row.measured["size"] for row in result.front}
    assert min(row.measured["size"] for row in result.trials) in sizes.values()
    kept = {row.number for row in result.trials if row.folder and (row.folder / "small.pt2").exists()}
    assert kept == set(sizes)


@pytest.mark.slow
def test_an_evaluator_that_fails_on_the_dense_model_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(
        FxcompressError, match=r"the dense model: TypeError: .*nothing can be searched before"
    ):
        search(
            "tests.auto.task:model", "tests.auto.task:free", folder=tmp_path, inputs="tests.auto.task:inputs"
        )
