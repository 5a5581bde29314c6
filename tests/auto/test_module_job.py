"""Every algorithm of the seeds runs with the user's trainers, and its files are measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxcompress
from fxcompress.auto import AbstractAutoCompressionModule, AutoCompressionSearchSpaceGenerator
from fxcompress.auto.jobs import Context, pickled
from fxcompress.auto.module_job import ModuleJob
from fxcompress.errors import ConfigError
from fxcompress.graph.cost import count_macs
from tests.auto import task

CONVOLUTION = {"op_names": ["0"], "sparsity": 0.5}
PRUNERS: dict[str, dict[str, Any]] = {
    **{n: {} for n in ("level", "l1", "l2", "fpgm", "slim", "taylorfo", "apoz", "mean_activation")},
    **{n: {} for n in ("activationapozrank", "activationmeanrank", "movement", "admm")},
    "agp": {"end_epoch": 2},
    "lottery_ticket": {"prune_iterations": 2},
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "admm": {"num_iterations": 1, "epochs_per_iteration": 1},
    "movement": {"warm_up_step": 0, "cool_down_beginning_step": 1},
}
SINGLE_WEIGHTS = ("level", "agp", "lottery_ticket", "movement", "admm")


def compressed(name: str, entry: dict[str, Any], folder: Path) -> fxcompress.CompiledModule:
    spec = {"algorithm": name, "config_list": [entry], "parameters": ARGUMENTS.get(name, {})}
    torch.manual_seed(0)
    module, config_list = ModuleJob(task.Task).compress(spec, Context(folder, folder))
    assert config_list == [entry]
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_of_the_seeds_leaves_what_its_config_says(name: str, tmp_path: Path) -> None:
    AutoCompressionSearchSpaceGenerator().add_config(name, [CONVOLUTION | PRUNERS[name]])
    module = compressed(name, CONVOLUTION | PRUNERS[name], tmp_path)
    weight = module.get_submodule("0").get_parameter("weight")
    if name in SINGLE_WEIGHTS:
        assert int((weight == 0).sum()) == 36  # half of 8 · 1 · 3 · 3
    else:
        assert tuple(weight.shape) == (4, 1, 3, 3)


@pytest.mark.parametrize("name", ["naive", "qat", "dorefa", "bnn", "lsq"])
def test_every_quantizer_of_the_seeds_can_be_saved_and_exported(name: str, tmp_path: Path) -> None:
    entry = {"op_types": ["Conv2d"], "quant_bits": 1 if name == "bnn" else 8}
    AutoCompressionSearchSpaceGenerator().add_config(name, [entry])
    module = compressed(name, entry, tmp_path)
    fxcompress.save(module, tmp_path / "small.pt2")
    loaded = fxcompress.load(tmp_path / "small.pt2")
    torch.testing.assert_close(loaded(task.inputs()), module(task.inputs()), rtol=1e-6, atol=1e-6)
    assert fxcompress.export_onnx(module, tmp_path / "small.onnx").path.exists()


def test_costs_are_those_of_the_files(tmp_path: Path) -> None:
    job = ModuleJob(task.Task)
    context = Context(tmp_path / "trial", tmp_path / "dense")
    dense = job.baseline(context)
    spec = {"algorithm": "l1", "config_list": [CONVOLUTION], "parameters": {}}
    result = job.run(spec, context)
    macs = {8: 36 * (8 * 9 + 8 * 8 * 9) + 24, 4: 36 * (4 * 9 + 4 * 8 * 9) + 24}
    assert dense["measured"]["macs"] == macs[8]
    assert result["measured"]["macs"] == macs[4]
    assert result["shares"]["macs"] == macs[4] / macs[8]
    assert result["measured"]["parameters"] == (4 * 10 + 8) + (8 * 4 * 9 + 8 + 16) + 27
    assert result["measured"]["size"] == (tmp_path / "trial" / "small.onnx").stat().st_size
    assert 0 < result["measured"]["latency"] < 1
    loaded = fxcompress.load(tmp_path / "trial" / "small.pt2")
    assert count_macs(loaded, task.inputs()).total == macs[4]
    assert result["metric"] == task.evaluate(loaded)


def test_a_pruner_that_measures_needs_training_or_data(tmp_path: Path) -> None:
    class Untrained(task.Task):
        @classmethod
        def sparsifying_trainer(cls, compress_algorithm_name: str) -> Any:
            return None

    spec = {"algorithm": "taylorfo", "config_list": [CONVOLUTION], "parameters": {}}
    with pytest.raises(fxcompress.FxcompressError, match="nothing has been measured yet"):
        ModuleJob(Untrained).compress(spec, Context(tmp_path, tmp_path))
    with pytest.raises(
        ConfigError, match=r"module: cannot be sent to worker processes .*not inside a function"
    ):
        pickled(ModuleJob(Untrained))


def test_a_class_that_lacks_methods_is_named() -> None:
    class Half(AbstractAutoCompressionModule):
        """Nothing but a name."""

    with pytest.raises(ConfigError, match="Half lacks criterion, evaluator, model, optimizer_factory"):
        ModuleJob(Half)  # type: ignore[type-abstract]
    with pytest.raises(
        ConfigError, match=r"expected a subclass of AbstractAutoCompressionModule, got <class 'int'>"
    ):
        ModuleJob(int)  # type: ignore[arg-type]
