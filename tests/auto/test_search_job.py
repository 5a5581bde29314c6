"""A trial of the short way: what is pruned, within the budget, and quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fxcompress
from fxcompress.auto import search
from fxcompress.auto.jobs import Context, resolve
from fxcompress.auto.limits import limits_of
from fxcompress.auto.search import Space, _goals, _split
from fxcompress.auto.search_job import SearchJob
from fxcompress.auto.study import import_optuna
from fxcompress.auto.warm import layers_to_prune
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.cost import count_macs
from fxcompress.passes.insert_fake_quant import quantizers
from tests.auto import task
from tests.helpers import weight_shape

DENSE = 36 * (8 * 9 + 8 * 8 * 9) + 24


def job(**parts: Any) -> SearchJob:
    given: dict[str, Any] = {"inputs": "tests.auto.task:inputs", "data": task.batches, "loss_fn": task.loss}
    return SearchJob("tests.auto.task:model", task.evaluate, **given | {"train": task.tune} | parts)


def entries(pruner: str, first: float, second: float) -> list[dict[str, Any]]:
    both = (("0", first), ("3", second))
    return [{"pruner": pruner, "sparsity": s, "op_names": [name]} for name, s in both]


def compressed(job: SearchJob, folder: Path, **spec: Any) -> tuple[fxcompress.CompiledModule, Any]:
    return job.compress({"pruning": [], "quantization": [], **spec}, Context(folder, folder))


def test_layers_that_make_the_output_are_left_alone() -> None:
    dense = fxcompress.capture(task.model(), task.inputs())
    assert layers_to_prune(dense, "l1") == ["0", "3"]
    assert layers_to_prune(dense, "l1", ["3"]) == ["3"]
    with pytest.raises(ConfigError, match="'9' is no layer that pruner 'l1' can prune"):
        layers_to_prune(dense, "l1", ["9"])


def test_each_layer_gets_its_own_sparsity(tmp_path: Path) -> None:
    module, config_list = compressed(job(), tmp_path, pruning=entries("taylor", 0.25, 0.75))
    assert weight_shape(module, "0") == (6, 1, 3, 3)
    assert weight_shape(module, "3") == (2, 6, 3, 3)
    assert config_list == entries("taylor", 0.25, 0.75)


def test_what_is_above_a_counted_budget_is_scaled_to_fit(tmp_path: Path) -> None:
    tight = job(limits=limits_of({"macs": 0.5}))
    module, config_list = compressed(tight, tmp_path, pruning=entries("l1", 0.1, 0.2))
    assert count_macs(module, task.inputs()).total <= 0.5 * DENSE
    first, second = (entry["sparsity"] for entry in config_list)
    assert second == pytest.approx(2 * first, abs=2e-4)
    steep, _ = compressed(tight, tmp_path, pruning=entries("l1", 0.01, 0.4))  # scaled alone: 0.02 and 0.98
    assert count_macs(steep, task.inputs()).total <= 0.5 * DENSE
    within, same = compressed(tight, tmp_path, pruning=entries("l1", 0.5, 0.5))
    assert same == entries("l1", 0.5, 0.5)
    assert count_macs(within, task.inputs()).total == 36 * (4 * 9 + 4 * 4 * 9) + 12


def test_single_weights_stay_zero_through_training(tmp_path: Path) -> None:
    module, _ = compressed(job(), tmp_path, pruning=entries("level", 0.5, 0.5))
    zeros = [int((module.get_submodule(n).get_parameter("weight") == 0).sum()) for n in ("0", "3")]
    assert zeros == [36, 288]


def test_pruning_and_quantizing_go_together(tmp_path: Path) -> None:
    quantization = [{"quantizer": "qat", "quant_bits": 8}]
    module, config_list = compressed(
        job(), tmp_path, pruning=entries("l1", 0.5, 0.5), quantization=quantization
    )
    assert quantizers(module)
    assert weight_shape(module, "0")[0] == 4
    assert config_list == entries("l1", 0.5, 0.5) + quantization
    report = fxcompress.export_onnx(module, tmp_path / "small.onnx")
    assert report.lint is not None
    assert report.lint.all_integer


def test_training_that_yields_is_reported(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    def report(step: int, metric: float) -> bool:
        told.append((step, metric))
        return False

    spec = {"pruning": entries("l1", 0.5, 0.5), "quantization": []}
    module, _ = job().compress(spec, Context(tmp_path, tmp_path, report))
    assert [step for step, _ in told] == [0, 1]
    assert told[-1][1] == task.evaluate(module)


def test_points_to_begin_with_meet_the_budget(tmp_path: Path) -> None:
    begun = job(limits=limits_of({"macs": 0.4}), shares=(("macs", 0.4),), pruners=("taylorfo", "l1"))
    points = begun.warm_starts(Context(tmp_path, tmp_path))
    assert len(points) == 2
    assert (tmp_path / "sensitivity.csv").exists()
    for point in points:
        assert point.pop("pruner") == "taylorfo"
        given = [
            {"pruner": "taylor", "sparsity": s, "op_names": [k.removeprefix("sparsity/")]}
            for k, s in point.items()
        ]
        module, config_list = compressed(begun, tmp_path, pruning=given)
        assert config_list == given
        assert count_macs(module, task.inputs()).total <= 0.4 * DENSE


def test_a_trial_is_proposed_with_a_sparsity_and_bits_per_layer() -> None:
    space = Space(("l1", "taylorfo"), ("none", "qat"), (8, 4))
    values = {
        "pruner": "taylorfo", "quantizer": "qat", "sparsity/0": 0.3, "sparsity/3": 0.001,
        "bits/0": 4, "bits/3": 8,
    }  # fmt: skip
    trial = import_optuna().trial.FixedTrial(values)
    spec = space.propose(trial, {"layers": ["0", "3"]})
    assert spec["pruning"] == [{"pruner": "taylor", "sparsity": 0.3, "op_names": ["0"]}]
    assert spec["quantization"] == [
        {"quantizer": "qat", "quant_bits": 8},
        {"quantizer": "qat", "quant_bits": {"weight": 4}, "op_names": ["0"]},
        {"quantizer": "qat", "quant_bits": {"weight": 8}, "op_names": ["3"]},
    ]


def test_algorithms_are_split_into_what_can_go_together() -> None:
    assert _split(["l1", "fpgm"]) == (("l1", "fpgm"), ("none",))
    assert _split(["l1", "qat"]) == (("l1",), ("none", "qat"))
    assert _split(["qat", "lsq"]) == (("none",), ("qat", "lsq"))


def test_goals_follow_the_budget() -> None:
    assert _goals(limits_of({"parameters": 0.2}), ()) == (("parameters", 0.2),)
    assert _goals(limits_of({"latency": "1ms"}), ()) == (("macs", 0.35), ("macs", 0.6))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithms": ["l1", "l3"]}, r"algorithm: expected the name .* got 'l3'; known are .*"),
        ({"algorithms": ["agp"]}, r"algorithms: 'agp' follows a schedule"),
        ({"algorithms": ["qat"]}, r"data: quantizer 'qat' chooses ranges on batches"),
        ({"bits": [0]}, r"bits: expected whole numbers from 1 to 32, got \[0\]"),
        ({"trials": 0}, r"trials: expected a whole number of at least 1, got 0"),
        ({"trails": 3}, r"trails: search has no such option; did you mean 'trials'"),
        ({"objectives": ["mac"]}, r"objectives: 'mac' is nothing that is measured"),
        ({"objectives": ["macs"], "pruner": "median"}, r"pruner: Optuna's pruners compare one objective"),
        ({"sampler": "tpx"}, r"sampler: Optuna has no sampler 'tpx'; did you mean 'tpe'"),
        ({"direction": "minimize"}, r"direction: search\(\) maximizes"),
    ],
)
def test_a_wrong_argument_is_an_error_before_any_work(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        search("tests.auto.task:model", "tests.auto.task:evaluate", folder=tmp_path, **given)


def test_a_place_that_cannot_be_imported_says_why() -> None:
    with pytest.raises(FxcompressError, match=r"tests.auto.task has no 'modle'; did you mean 'model'"):
        resolve("tests.auto.task:modle")
    with pytest.raises(FxcompressError, match=r"'tests.auto.task': expected package.module:name"):
        resolve("tests.auto.task")
