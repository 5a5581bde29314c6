"""A training loop that one process or several run; importable, as spawned processes need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fxcompress
from fxcompress.pruning import PRUNERS, get_masks
from tests.helpers import image, ready

CONFIG = [{"sparsity": 0.5, "op_types": ["Conv2d"]}]
_STEPS = {"statistics_batch_num": 2}
LOOP: dict[str, dict[str, Any]] = {"l1": {}, "taylor": _STEPS, "apoz": _STEPS}
"""Pruner → its options when it lives in the loop."""


def net(seed: int = 1) -> nn.Module:
    """``[n, 3, 6, 6]`` → ``[n, 3]``; without BatchNorm, so that a batch is the sum of its parts."""
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return ready(nn.Sequential(*layers), seed).train()


def batches(number: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of 8 images and labels."""
    return [(image(8, 3, 6, 6, seed=i), torch.arange(8) % 3) for i in range(number)]


def loss_fn(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy."""
    return cross_entropy(output, batch[1])


def train(name: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Four steps on this process's part of every batch; the weights and masks there are in the end."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    pruner: Any = PRUNERS[name](model, CONFIG, optimizer, example_inputs=image(2, 3, 6, 6), **LOOP[name])
    module = pruner.compress()
    trained = DistributedDataParallel(module) if world > 1 else module
    for x, y in batches():
        x, y = x.chunk(world)[rank], y.chunk(world)[rank]
        optimizer.zero_grad()
        cross_entropy(trained(x), y).backward()
        optimizer.step()
    return {"masks": get_masks(module), "weights": dict(model.state_dict())}


def measure(name: str, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Masks by measuring this process's share of the data."""
    data = batches()[rank::world]
    config = [{**CONFIG[0], "pruner": name}]
    module = fxcompress.compile(net(), config, image(2, 3, 6, 6), data=data, loss_fn=loss_fn)
    return {"masks": get_masks(module)}


def everything(rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Every pruner in the loop; those that measure, also on data."""
    found = {f"loop {name}": train(name, rank, world) for name in LOOP}
    return found | {f"data {name}": measure(name, rank, world) for name in ("taylor", "apoz")}


def worker(rank: int, world: int, folder: str) -> None:
    """One of ``world`` processes; writes what ``everything`` gives to ``folder``."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save(everything(rank, world), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
