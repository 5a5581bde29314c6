"""A task that takes no time, importable by worker processes: eight little pictures a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.auto import AbstractAutoCompressionModule
from tests.helpers import ready


def model() -> nn.Module:
    """``[n, 1, 6, 6]`` to logits ``[n, 3]``, with randomized statistics and biases."""
    layers = (
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    return ready(nn.Sequential(*layers)).float()


def inputs() -> Tensor:
    """Four pictures."""
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def batches() -> list[tuple[Tensor, Tensor]]:
    """Two batches."""
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(12, 1, 6, 6, generator=draw), torch.arange(12) % 3) for _ in range(2)]


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy."""
    return F.cross_entropy(output, batch[1])


def evaluate(module: nn.Module) -> float:
    """The negative loss."""
    with torch.no_grad():
        return -sum(loss(module(batch[0]), batch).item() for batch in batches())


def epoch(module: nn.Module, optimizer: Any, criterion: Any, number: int) -> None:
    """A step per batch."""
    module.train()
    for x, y in batches():
        optimizer.zero_grad()
        criterion(module(x), y).backward()
        optimizer.step()
    module.eval()


def tune(module: nn.Module) -> Iterator[None]:
    """Two epochs."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for number in range(2):
        epoch(module, optimizer, F.cross_entropy, number)
        yield


class Task(AbstractAutoCompressionModule):
    """The same in the seeds' interface."""

    @classmethod
    def model(cls) -> nn.Module:
        return model()

    @classmethod
    def evaluator(cls) -> Callable[[nn.Module], float]:
        return evaluate

    @classmethod
    def optimizer_factory(cls) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
        return partial(torch.optim.SGD, lr=0.05)

    @classmethod
    def criterion(cls) -> Callable[..., Tensor]:
        return F.cross_entropy

    @classmethod
    def sparsifying_trainer(cls, compress_algorithm_name: str) -> Callable[..., None]:
        return epoch

    @classmethod
    def post_compress_finetuning_trainer(cls, compress_algorithm_name: str) -> Callable[..., None]:
        return epoch

    @classmethod
    def post_compress_finetuning_epochs(cls, compress_algorithm_name: str) -> int:
        return 1

    @classmethod
    def example_inputs(cls) -> Tensor:
        return inputs()


def free() -> float:
    """No evaluator: it takes no module."""
    return 1.0
