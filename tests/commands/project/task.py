"""What a user of the command line has in the current folder: a model, data, training, a metric."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional


class Net(nn.Module):
    """``[n, 1, 8, 8]`` → ``[n, classes]``: a stem, one residual block, a classifier."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.conv2(self.conv1(x).relu())).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def make(width: int = 16, classes: int = 10) -> Net:
    """A network with weights, biases and statistics that are nowhere plain, the same at every call."""
    torch.manual_seed(0)
    net = Net(width, classes)
    for tensor in (*net.bn.buffers(), net.bn.weight, net.bn.bias):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5)
    return net


net = make()
number = 3


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Three batches of four."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        yield torch.randn(4, 1, 8, 8, generator=generator), torch.arange(4)


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy."""
    return functional.cross_entropy(output, batch[1])


def tune(module: nn.Module) -> None:
    """Three steps; prints, as training does."""
    print("training")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module.train()
    for batch in batches():
        optimizer.zero_grad()
        loss(module(batch[0]), batch).backward()
        optimizer.step()


def tune_for_long(module: nn.Module) -> None:
    """Training that is not done before the test interrupts it."""
    Path("training").touch()
    time.sleep(600)


def tune_badly(module: nn.Module) -> None:
    """Training that fails."""
    raise ValueError("no such optimizer")


def score(module: nn.Module) -> float:
    """Minus the mean square of the logits."""
    x = torch.ones(2, 1, 8, 8)
    return -float(module(x).square().mean())


scores = 0


def interrupted_score(module: nn.Module) -> float:
    """The same, and Ctrl-C in the third evaluation."""
    global scores
    scores += 1
    if scores == 3:
        raise KeyboardInterrupt
    return score(module)
