"""The seeds' experiment: a module, a search space, a number of trials.

experiment = AutoCompressionExperiment(MyModule, "local")
experiment.config.search_space = generator.dumps()
experiment.config.max_trial_number = 20
result = experiment.run(8080)             # with optuna-dashboard on that port of the loopback address
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxcompress.auto.dashboard import Dashboard
from fxcompress.auto.driver import Driver
from fxcompress.auto.interface import AbstractAutoCompressionModule
from fxcompress.auto.limits import limits_of
from fxcompress.auto.module_job import ModuleJob
from fxcompress.auto.options import make_options
from fxcompress.auto.result import SearchResult
from fxcompress.auto.space import algorithms_of, drawn
from fxcompress.errors import ConfigError, FxcompressError


@dataclass
class TunerConfig:
    """``name``: of one of Optuna's samplers. ``class_args``: its arguments, and ``optimize_mode``."""

    name: str = "TPE"
    class_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingServiceConfig:
    """``use_active_gpu``: ``False`` hides all GPUs from trials."""

    use_active_gpu: bool | None = None


@dataclass
class ExperimentConfig:
    """What the seeds' experiments are configured by; and ``budget`` and ``options``, as for ``search``."""

    experiment_name: str = "auto compression"
    trial_concurrency: int = 1
    max_trial_number: int = 20
    search_space: dict[str, Any] | None = None
    trial_code_directory: str | os.PathLike[str] = "."
    tuner: TunerConfig = field(default_factory=TunerConfig)
    training_service: TrainingServiceConfig = field(default_factory=TrainingServiceConfig)
    budget: Mapping[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)


class AutoCompressionExperiment:
    """Searches a space with trials of a user's module, on this machine."""

    def __init__(self, auto_compress_module: type[AbstractAutoCompressionModule], platform: str = "local"):
        """Raises ConfigError for another platform, or a module that lacks methods."""
        if platform != "local":
            raise ConfigError(
                f"platform: expected 'local', got {platform!r}; several machines share one study by "
                "config.options['storage'], the URL of a database"
            )
        self.job = ModuleJob(auto_compress_module)
        self.config = ExperimentConfig()
        self.dashboard: Dashboard | None = None

    def run(self, port: int | None = None) -> SearchResult:
        """Search; the dashboard answers on ``port`` from the start until ``stop()``.

        Raises:
            ConfigError: naming what in the config is wrong.
            FxcompressError: if the port is taken, or the dense model itself fails.
        """
        driver = self._driver()
        self.stop()
        if port is not None:
            self.dashboard = Dashboard(driver.storage, port)
        return driver.run()

    def stop(self) -> None:
        """Serve the dashboard no longer."""
        if self.dashboard is not None:
            self.dashboard.stop()
            self.dashboard = None

    def _driver(self) -> Driver:
        config = self.config
        if config.search_space is None:
            raise ConfigError("config.search_space: expected what a generator's dumps() gives, got none")
        entries = algorithms_of(config.search_space)
        self._find_code()
        arguments = dict(config.tuner.class_args)
        direction = arguments.pop("optimize_mode", "maximize")
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if config.training_service.use_active_gpu is False else {}
        options = make_options(
            {
                "name": config.experiment_name,
                "folder": Path(config.trial_code_directory) / "search",
                "trials": config.max_trial_number,
                "workers": config.trial_concurrency,
                "sampler": config.tuner.name,
                "sampler_options": arguments,
                "direction": direction,
                "limits": limits_of(config.budget),
                "environment": hidden,
                **config.options,
            }
        )
        return Driver(self.job, lambda trial, _: drawn(trial, entries), config.search_space, options)

    def _find_code(self) -> None:
        """Let worker processes import the module: they search where this process does."""
        folder = Path(self.config.trial_code_directory).resolve()
        if not folder.is_dir():
            raise FxcompressError(
                f"config.trial_code_directory: {folder} is no folder; name that of the module"
            )
        file = inspect.getsourcefile(self.job.module)
        if file is not None and str(folder) not in sys.path and folder in Path(file).resolve().parents:
            sys.path.insert(0, str(folder))
