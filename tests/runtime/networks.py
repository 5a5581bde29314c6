"""Networks quantized by onnxruntime itself: u8 activations, s8 weights for each channel, QDQ format."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.runtime.graphs import Array
from tests.export.models import randomized


def _has_vnni() -> bool:
    with contextlib.suppress(OSError):
        return platform.machine() == "x86_64" and "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return False


needs_vnni = pytest.mark.skipif(not _has_vnni(), reason="the arithmetic is that of x86-64 with VNNI")


class Convolutions(nn.Module):
    """Random blocks of every operator with an integer kernel, then a classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        width = int(random.integers(2, 5)) * 4
        stride = int(random.integers(1, 3))
        self.stem = nn.Conv2d(3, width, 3, stride=stride, padding=1)
        self.depthwise = nn.Conv2d(width, width, int(random.choice([3, 5])), padding="same", groups=width)
        dilation = int(random.integers(1, 3))
        self.grouped = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=4)
        self.norm = nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.squeeze, self.excite = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if seed % 2 else nn.AvgPool2d(3, 2, 1)
        self.fc = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        left = F.leaky_relu(self.depthwise(x), 0.1)
        right = F.relu6(self.norm(self.grouped(x)))
        x = F.relu(self.mix(torch.cat([left, right], 1)) + x)
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        x = x * torch.sigmoid(gate)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A transformer layer: LayerNorm, Gelu and the scaling of the scores run in float."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 5.0, -1) @ v)
        return x + self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


def exported(model: nn.Module, example: Tensor, path: Path, opset: int = 18) -> Path:
    """``model`` as torch writes it, with an open batch."""
    with _quiet():
        dynamic = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=dynamic,
            input_names=["x"],
        )
    assert program is not None
    program.save(str(path))
    return path


def quantized(model: nn.Module, example: Tensor, path: Path, seed: int = 0) -> Path:
    """Export, fold, quantize on three random batches and write ``model`` to ``path``."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped]
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    torch.manual_seed(seed)
    with torch.no_grad():
        randomized(model).eval()
    batches = [{"x": _batch(example.shape, seed + i)} for i in range(3)]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        floats, folded = Path(folder) / "float.onnx", Path(folder) / "folded.onnx"
        exported(model, example, floats)
        quant_pre_process(str(floats), str(folded), skip_symbolic_shape=True)
        proto = onnx.load(str(folded))
        _pool_means(proto)
        quantize_static(
            proto,
            str(path),
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    return path


def feeds(example: Tensor, seed: int) -> dict[str, Array]:
    """Numbers the calibration has not seen, some of them out of its range."""
    return {"x": _batch((3, *example.shape[1:]), 100 + seed) * np.float32(1.3)}


def _batch(shape: Any, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)


class _Reader:
    """A calibration data reader."""

    def __init__(self, batches: list[dict[str, Array]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _pool_means(model: onnx.ModelProto) -> None:
    """ReduceMean over both spatial axes, the exporter's form of a global pooling, as GlobalAveragePool."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        kept = any(attribute.name == "keepdims" and attribute.i == 1 for attribute in node.attribute)
        if node.op_type == "ReduceMean" and kept and sorted(constants[node.input[1]] % 4) == [2, 3]:
            pool = helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
            node.CopyFrom(pool)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
