"""A trial of the seeds' interface: one algorithm, with the user's trainers.

model → algorithm(model, config_list, optimizer).compress() → sparsifying trainer → fine-tuning → speedup
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcompress.auto.algorithms import algorithm, sparsify, with_regularizer
from fxcompress.auto.interface import AbstractAutoCompressionModule, Evaluator
from fxcompress.auto.jobs import Context, Job
from fxcompress.compiler import speedup
from fxcompress.errors import ConfigError
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import Pruner


class ModuleJob(Job):
    """Trials of an ``AbstractAutoCompressionModule``."""

    def __init__(self, module: type[AbstractAutoCompressionModule]) -> None:
        """Raises ConfigError for another kind of class."""
        if not (isinstance(module, type) and issubclass(module, AbstractAutoCompressionModule)):
            raise ConfigError(f"module: expected a subclass of AbstractAutoCompressionModule, got {module!r}")
        missing = sorted(module.__abstractmethods__)
        if missing:
            raise ConfigError(f"module: {module.__name__} lacks {', '.join(missing)}")
        self.module = module

    def model(self) -> nn.Module:
        """The dense model."""
        return self.module.model()

    def evaluator(self) -> Evaluator:
        """Its metric."""
        return self.module.evaluator()

    def example_inputs(self) -> Any:
        """Those the user gives, if any."""
        return self.module.example_inputs()

    def compress(self, spec: dict[str, Any], context: Context) -> tuple[CompiledModule, list[dict[str, Any]]]:
        """Run ``spec["algorithm"]`` on ``spec["config_list"]``, trained as the user says."""
        user, name = self.module, spec["algorithm"]
        model, factory = user.model(), user.optimizer_factory()
        optimizer = None if factory is None else factory(model.parameters())
        compressor = algorithm(name)(
            model, spec["config_list"], optimizer, example_inputs=user.example_inputs(), data=user.data(),
            **spec["parameters"],
        )  # fmt: skip
        module = compressor.compress()
        criterion = with_regularizer(user.criterion(), compressor)
        sparsifying, tuning = user.sparsifying_trainer(name), user.post_compress_finetuning_trainer(name)

        def train(epoch: int) -> None:
            if sparsifying is not None:
                sparsifying(module, optimizer, criterion, epoch)

        sparsify(compressor, train)
        if tuning is not None:
            for epoch in range(user.post_compress_finetuning_epochs(name)):
                tuning(module, optimizer, user.criterion(), epoch)
                self.progress(module, epoch, context)
        module.eval()
        return (speedup(module) if isinstance(compressor, Pruner) else module), spec["config_list"]
