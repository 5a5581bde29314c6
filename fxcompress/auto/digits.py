"""The example: scikit-learn's digits, as the seeds' interface and as functions for ``search``.

The dense model is trained once and kept in ``digits.safetensors`` in the current folder.

    fxcompress search fxcompress.auto.digits:DigitsModule --algorithms level,l1,fpgm,taylorfo,qat
    fxcompress search fxcompress.auto.digits:model --evaluator fxcompress.auto.digits:accuracy \\
        --train fxcompress.auto.digits:finetune --budget macs=0.35
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fxcompress.auto.interface import AbstractAutoCompressionModule, Evaluator, Trainer
from fxcompress.demo import DigitNet, Digits, fit, load_digits
from fxcompress.export.files import replacing

FILE = Path("digits.safetensors")
EPOCHS, TUNING, BATCH = 8, 3, 64
RATE = 2e-3


@functools.cache
def digits() -> Digits:
    """The images, split by seed 0."""
    return load_digits(0)


def model() -> nn.Module:
    """``DigitNet``, trained for eight epochs when it is first asked for."""
    network = DigitNet().eval()
    if not FILE.exists():
        torch.manual_seed(0)
        network = DigitNet()
        fit(network, digits(), EPOCHS, 5e-3, lambda: None)
        with replacing(FILE) as temporary:
            save_file(network.state_dict(), temporary)
    network.load_state_dict(load_file(FILE))
    return network


def accuracy(module: nn.Module) -> float:
    """The share of test images that are right."""
    with torch.no_grad():
        found = module(digits().test_images).argmax(1)
    return float((found == digits().test_labels).float().mean())


def batches() -> list[tuple[Tensor, Tensor]]:
    """Eight batches of training images and labels."""
    pairs = zip(digits().train_images.split(BATCH), digits().train_labels.split(BATCH), strict=True)
    return list(pairs)[:8]


def inputs() -> Tensor:
    """Sixteen test images ``[16, 1, 8, 8]``."""
    return digits().test_images[:16]


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy."""
    return functional.cross_entropy(output, batch[1])


def epoch(module: nn.Module, optimizer: Any, criterion: Any, number: int) -> None:
    """One epoch over the training images."""
    module.train()
    for chosen in torch.randperm(len(digits().train_images)).split(BATCH):
        optimizer.zero_grad()
        criterion(module(digits().train_images[chosen]), digits().train_labels[chosen]).backward()
        optimizer.step()
    module.eval()


def finetune(module: nn.Module) -> Iterator[None]:
    """Epochs of fine-tuning."""
    optimizer = torch.optim.Adam(module.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, TUNING)
    for number in range(TUNING):
        epoch(module, optimizer, functional.cross_entropy, number)
        schedule.step()
        yield


class DigitsModule(AbstractAutoCompressionModule):
    """The same for ``AutoCompressionExperiment``."""

    @classmethod
    def model(cls) -> nn.Module:
        """The trained model."""
        return model()

    @classmethod
    def evaluator(cls) -> Evaluator:
        """Test accuracy."""
        return accuracy

    @classmethod
    def optimizer_factory(cls) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
        """Adam."""
        return functools.partial(torch.optim.Adam, lr=RATE)

    @classmethod
    def criterion(cls) -> Callable[..., Tensor]:
        """Cross entropy."""
        return functional.cross_entropy

    @classmethod
    def sparsifying_trainer(cls, compress_algorithm_name: str) -> Trainer | None:
        """An epoch where the algorithm looks at training."""
        return None if compress_algorithm_name in ("level", "l1", "l2", "fpgm") else epoch

    @classmethod
    def post_compress_finetuning_trainer(cls, compress_algorithm_name: str) -> Trainer:
        """An epoch."""
        return epoch

    @classmethod
    def post_compress_finetuning_epochs(cls, compress_algorithm_name: str) -> int:
        """Three."""
        return TUNING

    @classmethod
    def example_inputs(cls) -> Tensor:
        """Sixteen images."""
        return inputs()
