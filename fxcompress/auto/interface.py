"""What a user of the seeds' auto-compression implements: the model and how it is trained and evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

Evaluator = Callable[[nn.Module], float]
Trainer = Callable[[nn.Module, Any, Any, int], None]
"""``trainer(model, optimizer, criterion, epoch)``."""


class AbstractAutoCompressionModule(ABC):
    """A model and its training, as classmethods; worker processes import the class by its name."""

    @classmethod
    @abstractmethod
    def model(cls) -> nn.Module:
        """The trained model to compress; called anew for every trial."""

    @classmethod
    @abstractmethod
    def evaluator(cls) -> Evaluator:
        """A function from a module to its metric, a finite number."""

    @classmethod
    @abstractmethod
    def optimizer_factory(cls) -> Callable[[Iterable[nn.Parameter]], Optimizer] | None:
        """A function from parameters to an optimizer; ``None`` where nothing is trained."""

    @classmethod
    @abstractmethod
    def criterion(cls) -> Callable[..., Any] | None:
        """The loss that trainers are given (with the term of an algorithm that has one, ``slim`` say)."""

    @classmethod
    @abstractmethod
    def sparsifying_trainer(cls, compress_algorithm_name: str) -> Trainer | None:
        """An epoch of training while the algorithm chooses (``taylorfo``, ``slim``, ``qat``); or ``None``."""

    @classmethod
    @abstractmethod
    def post_compress_finetuning_trainer(cls, compress_algorithm_name: str) -> Trainer | None:
        """An epoch of training of the compressed module; or ``None``."""

    @classmethod
    @abstractmethod
    def post_compress_finetuning_epochs(cls, compress_algorithm_name: str) -> int:
        """How many epochs of that."""

    @classmethod
    def example_inputs(cls) -> Any:
        """As for ``fxcompress.compile``; ``None``: found from the first layers."""
        return None

    @classmethod
    def data(cls) -> Iterable[Any] | None:
        """Batches to measure and calibrate on without training, as for ``compile``; or ``None``."""
        return None
