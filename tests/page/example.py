"""A page with every part on it: pruned, sped up, quantized, exported and measured."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.page import PageData
from fxcompress.sensitivity import SensitivityAnalysis
from fxcompress.sqnr import SqnrReport, sqnr
from tests.helpers import ready

RESULTS = {"stem": {0.0: 0.9, 0.5: 0.8}, "block.conv1": {0.0: 0.9, 0.5: 0.85}}


class Block(nn.Module):
    """A residual block whose inner width is free."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.norm(self.conv1(x)))))


class Net(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.block = Block(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))
        return y


class Pruned(NamedTuple):
    """``masked`` keeps the module before the speedup alive."""

    masked: CompiledModule
    small: CompiledModule


def pruned(net: nn.Module | None = None) -> Pruned:
    """The inner width of the block halved; every second filter of the stem masked, which cannot go."""
    model = ready(Net() if net is None else net).float()
    x = torch.randn(2, 3, 8, 8)
    compiled = fxcompress.compile(model, [{"sparsity": 0.5, "op_names": ["block.conv1"]}], x)
    stem = torch.ones(8, 3, 3, 3)
    stem[::2] = 0
    masked = fxcompress.apply_masks(compiled, {"stem": {"weight": stem, "bias": stem[:, 0, 0, 0]}})
    return Pruned(masked, fxcompress.speedup(masked))


class Example(NamedTuple):
    folder: Path
    data: PageData
    small: CompiledModule
    sqnr: SqnrReport

    @property
    def page(self) -> str:
        return (self.folder / "report.html").read_text(encoding="utf-8")


@functools.cache
def example() -> Example:
    """Written once per process; the folder is gone at its end."""
    folder = Path(tempfile.mkdtemp(prefix="fxcompress-page-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    masked, small = pruned()
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    entry = [{"quant_bits": 8, "quantizer": "ptq"}]
    quantized = fxcompress.compile(small, entry, batches[0], data=batches)
    noise = sqnr(quantized, batches)
    onnx = fxcompress.export_onnx(quantized, folder / "small.onnx")
    analysis = SensitivityAnalysis(masked, lambda _: 0.0, layers=["stem"])
    analysis.results.update(RESULTS)
    data = fxcompress.write_report(
        folder / "report.html",
        small,
        onnx=onnx,
        sensitivity=analysis,
        sqnr=noise,
        metrics={"accuracy": (0.98, 0.95)},
    )
    return Example(folder, data, small, noise)
