"""What the tests of schedules train: a small convnet, a small transformer block, a few steps."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import get_masks
from tests.helpers import check_exact, image, ready


def convnet(seed: int = 1) -> nn.Module:
    """Convolutions with BatchNorm and a head; a sigmoid turns zero channels into constants."""
    torch.manual_seed(seed)
    return ready(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1),
            nn.Sigmoid(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 5),
        ),
        seed,
    )


class Block(nn.Module):
    """A transformer block, ``[batch, tokens, 8]``, of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.down(F.gelu(self.up(self.norm2(x))))
        return torch.add(x, y)


def transformer(seed: int = 1) -> nn.Module:
    """A randomized block."""
    torch.manual_seed(seed)
    return ready(Block(), seed)


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convnet": (convnet, image(4, 3, 6, 6)),
    "transformer": (transformer, image(4, 5, 8)),
}


def sgd(model: nn.Module) -> torch.optim.SGD:
    """With momentum, so that there is state."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    steps: int = 2,
    extra: Callable[[], Tensor] | None = None,
) -> None:
    """A few steps towards a fixed target, in train mode; the module is left in eval mode."""
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        output = module(x)
        loss = (output - torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype)).square().mean()
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
    module.eval()


def zeros(module: nn.Module) -> dict[str, int]:
    """Layer → how many entries of its weight are masked."""
    return {layer: int((m["weight"] == 0).sum()) for layer, m in get_masks(module).items() if "weight" in m}


def rows(module: nn.Module) -> dict[str, int]:
    """Layer → how many rows of its weight are masked whole."""
    weights = {layer: masks["weight"] for layer, masks in get_masks(module).items() if "weight" in masks}
    return {layer: int((w.reshape(len(w), -1) == 0).all(1).sum()) for layer, w in weights.items()}


def same_masks(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same masks, those of activations and statistics too."""
    a, b = ({n: v for n, v in m.state_dict().items() if "mask" in n} for m in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def through_file(state: Any) -> Any:
    """``torch.save`` and ``torch.load(weights_only=True)``."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_speedup(module: CompiledModule, x: Tensor) -> CompiledModule:
    """Law 1 in float64."""
    small = fxcompress.speedup(module)
    check_exact(small, module, x)
    return small
