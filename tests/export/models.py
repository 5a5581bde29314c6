"""Small models of many shapes with randomized statistics and biases, each with inputs for its ``forward``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.subject import import_torchvision

Case = tuple[nn.Module, Any]


def randomized(model: nn.Module) -> nn.Module:
    """``model`` with random statistics, affine parameters and biases."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "running_mean":
                buffer.normal_(0, 0.3)
            elif name == "running_var":
                buffer.uniform_(0.5, 2)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias, 0, 0.3)  # type: ignore[arg-type]
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # type: ignore[arg-type]
    return model


class Residual(nn.Module):
    """Grouped and depthwise convolutions, batch norms, a residual, dropout by module and by function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.bn = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.Hardswish(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        x = x + F.dropout(self.depthwise(F.relu(self.grouped(x))), 0.2, self.training)
        return self.fc(self.drop(self.pool(x).flatten(1)))  # type: ignore[no-any-return]


class Several(nn.Module):
    """Two inputs (one by keyword, integer ids), a nested dict of outputs, a constant buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.register_buffer("shift", torch.randn(6), persistent=False)
        self.register_buffer("steps", torch.tensor(3))
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, ids: Tensor, *, weights: Tensor) -> dict[str, Any]:
        x = self.norm(self.embed(ids) * self.scale + self.shift)
        pooled = (x * weights.unsqueeze(-1)).sum(1)
        return {"pooled": pooled, "more": (x, [ids + 1]), "positive": pooled > 0}


class Tied(nn.Module):
    """A weight shared by two layers, and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 12)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(self.embed(ids))))))  # type: ignore[no-any-return]


class Skip(nn.Module):
    """Stochastic depth: does nothing in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((x.shape[0], 1), 0.5)) if self.training else x


class WithSkip(nn.Module):
    """A foreign leaf module that is an identity in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.skip, self.b = nn.Linear(4, 8), Skip(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.skip(self.a(x)))  # type: ignore[no-any-return]


class Upsampling(nn.Module):
    """Transposed convolution, interpolation, padding with a constant, concatenation, group norm, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm, self.act = nn.GroupNorm(3, 6), nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1)
        self.pad, self.grow = nn.ConstantPad2d(1, 0.5), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.act(self.norm(self.down(x)))
        return torch.cat([self.up(y), self.grow(y)], 1), self.pad(x)


def _encoder() -> Case:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)


def _sequential() -> Case:
    layers = (
        nn.Conv1d(2, 4, 3),
        nn.BatchNorm1d(4),
        nn.Sigmoid(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(28, 3),
    )
    return nn.Sequential(*layers), torch.randn(2, 2, 16)


def _low_precision() -> Case:
    return nn.Sequential(nn.Linear(4, 6), nn.GELU("tanh"), nn.Linear(6, 2)).bfloat16(), torch.randn(
        3, 4
    ).bfloat16()


def _double() -> Case:
    return Residual().double(), torch.randn(2, 3, 8, 8).double()


def _lstm() -> Case:
    return nn.LSTM(3, 4, num_layers=2, batch_first=True), torch.randn(2, 6, 3)


def _channels_last() -> Case:
    return Residual().to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)  # type: ignore[call-overload]


CASES: dict[str, Callable[[], Case]] = {
    "sequential": _sequential,
    "residual": lambda: (Residual(), torch.randn(2, 3, 8, 8)),
    "several": lambda: (Several(), {"ids": torch.randint(0, 11, (2, 4)), "weights": torch.rand(2, 4)}),
    "tied": lambda: (Tied(), torch.randint(0, 12, (2, 4))),
    "skip": lambda: (WithSkip(), torch.randn(3, 4)),
    "upsampling": lambda: (Upsampling(), torch.randn(2, 3, 8, 8)),
    "encoder": _encoder,
    "bfloat16": _low_precision,
    "float64": _double,
    "lstm": _lstm,
    "channels_last": _channels_last,
}


def build(name: str) -> Case:
    """The case ``name``, always with the same values."""
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    with torch.no_grad():
        return randomized(model), inputs


def vision_model(name: str) -> nn.Module:
    """A torchvision model with random weights."""
    models = import_torchvision().models
    torch.manual_seed(0)
    with torch.no_grad():
        return randomized(models.get_model(name, weights=None))
