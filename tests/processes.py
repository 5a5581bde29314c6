"""A training loop that one process or several run; importable, as spawned processes need it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import fxcompress
from fxcompress.pruning import PRUNERS, get_masks
from fxcompress.quantization import QUANTIZERS
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


def quantized(name: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Three steps of a float32 network with BatchNorm; its state in the end, with scales and ranges."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    model = ready(nn.Sequential(*layers, nn.Linear(24, 3))).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    config: list[dict[str, Any]] = [{"quant_bits": 6}, {"quant_start_step": 1, "op_names": ["3"]}]
    module = QUANTIZERS[name](model, config, optimizer, example_inputs=image(2, 3, 6, 6).float()).compress()
    trained = DistributedDataParallel(module) if world > 1 else module
    trained.train()
    for x, y in batches(3):
        x, y = x.chunk(world)[rank].float(), y.chunk(world)[rank]
        optimizer.zero_grad()
        cross_entropy(trained(x), y).backward()
        optimizer.step()
    return dict(module.state_dict())


def all_quantized(rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Every quantizer that trains ranges or scales."""
    return {name: quantized(name, rank, world) for name in ("qat", "lsq", "lsq+")}


def worker(rank: int, world: int, folder: str, work: Callable[[int, int], Any] = everything) -> None:
    """One of ``world`` processes; writes what ``work`` gives to ``folder``."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save(work(rank, world), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def together(folder: Path, work: Callable[[int, int], Any]) -> tuple[Any, list[Any]]:
    """What ``work`` gives in one process, and in each of two."""
    context: Any = multiprocessing.spawn(worker, args=(2, str(folder), work), nprocs=2, join=False)  # type: ignore[attr-defined, no-untyped-call]
    alone = work(0, 1)
    while not context.join():
        pass
    return alone, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
