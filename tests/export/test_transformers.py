"""Transformers in ONNX: which kernels their layers become, and SmoothQuant on the way into the file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from benchmarks.onnx_timing import outputs
from fxcompress.quantization import PTQ_Quantizer
from fxcompress.runtime.optimized import optimize
from tests.helpers import ready, relative_error
from tests.runtime.networks import needs_vnni

WIDTH, TOKENS = 32, 6


class Block(nn.Module):
    """A block of BERT with its attention written out, and a mask of −3.4e38 where ``keep`` is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.n0, self.n1, self.n2 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], TOKENS, 2, WIDTH // 2).transpose(1, 2)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        h = self.n0(x)
        mask = torch.where(keep[:, None, None, :] > 0, 0.0, torch.finfo(torch.float32).min)
        q, k, v = (self.heads(layer(h)) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) / math.sqrt(WIDTH // 2) + mask
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], TOKENS, WIDTH)
        h = self.n1(h + self.o(attended))
        out: Tensor = self.n2(h + self.down(F.gelu(self.up(h))))
        return out


def with_outliers() -> Block:
    """Two channels of every norm and of the GELU a hundred times as large, and read by weights as small."""
    model = ready(Block()).float()
    assert isinstance(model, Block)
    with torch.no_grad():
        for norm, readers in ((model.n0, (model.q, model.k, model.v)), (model.n1, (model.up,))):
            for channel in (3, 11):
                norm.weight[channel] = 100
                for reader in readers:
                    reader.weight[:, channel] /= 100
    return model


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    keep = torch.ones(rows, TOKENS)
    keep[::2, -2:] = 0
    return torch.randn(rows, TOKENS, WIDTH, generator=random), keep


def kernels(path: Path) -> list[str]:
    return [node.op for node in optimize(path).graph.nodes]


def test_linear_layers_with_their_bias_are_one_kernel_each(tmp_path: Path) -> None:
    x = inputs(3)
    quantizer = PTQ_Quantizer(ready(Block()).float(), [{"quant_bits": 8}], example_inputs=x, data=[x])
    report = fxcompress.export_onnx(quantizer.compress(), tmp_path / "block.onnx")
    found = kernels(report.path)
    assert found.count("QGemm") == 6
    assert (found.count("Gelu"), found.count("LayerNormalization")) == (1, 3)
    assert not {"Gemm", "MatMulIntegerToFloat", "SkipLayerNormalization", "Erf"} & set(found)
    assert found.count("Add") == 3, "two residual sums and the mask: no bias is left"
    assert report.batch_is_dynamic


@needs_vnni
def test_smoothed_outliers_survive_the_way_into_the_file(tmp_path: Path) -> None:
    model, data = with_outliers(), [inputs(16, 1), inputs(16, 2)]
    x = inputs(8, 5)
    expected, errors = model(*x), []
    for alpha in (None, 0.8):
        quantizer = PTQ_Quantizer(
            model, [{"quant_bits": 8}], example_inputs=inputs(4), data=data, smooth=alpha
        )
        report = fxcompress.export_onnx(quantizer.compress(), tmp_path / "block.onnx")
        assert report.parity is not None
        assert report.parity.mismatches == 0
        got = outputs(report.path, [[t.numpy() for t in x]])[0]
        errors.append(relative_error(expected, torch.from_numpy(got)))
    done = quantizer.outcomes["smooth"].done
    assert done == ("n0 · 1/s → q, k, v", "n1 · 1/s → up", "gelu · 1/s → down")
    assert errors[1] < errors[0] / 4


def test_no_quantizer_sees_the_mask() -> None:
    """A range that reaches to −3.4e38 would leave one value for everything else."""
    x = inputs(3)
    quantizer = PTQ_Quantizer(ready(Block()).float(), [{"quant_bits": 8}], example_inputs=x, data=[x])
    quantizer.compress()
    assert all(float(q.scale.max()) < 1 for q in quantizer.fake_quantizers.values())


def test_projections_of_multihead_attention_are_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ready(nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True)).float()
    x = torch.randn(3, 5, 16)
    quantizer = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=x, data=[x])
    report = fxcompress.export_onnx(quantizer.compress(), tmp_path / "layer.onnx")
    assert kernels(report.path).count("QGemm") == 4  # q, k and v at once, out, and the two behind
    assert "self_attn" in {wrapper.name for wrapper in quantizer.wrappers}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_layer_norm_are_what_they_were(approximate: str, tmp_path: Path) -> None:
    """``export_onnx`` compares with the module; here also in ranks that no kernel is chosen for."""
    layers = (nn.LayerNorm(8), nn.GELU(approximate), nn.LayerNorm(8, elementwise_affine=False))
    model = ready(nn.Sequential(*layers)).float()
    for shape in ((3, 8), (3, 5, 8), (2, 3, 5, 8)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
        report = fxcompress.export_onnx(model, tmp_path / "m.onnx", x)
        got = outputs(report.path, [[np.asarray(x)]])[0]
        assert relative_error(model(x), torch.from_numpy(got)) <= 1e-5


def test_a_residual_sum_in_front_of_a_norm_keeps_its_own_kernel(tmp_path: Path) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.norm(x + y)
            return out

    report = fxcompress.export_onnx(
        ready(Residual()).float(), tmp_path / "m.onnx", (torch.randn(2, 3, 8),) * 2
    )
    assert sorted(kernels(report.path)) == ["Add", "LayerNormalization", "Squeeze", "Unsqueeze"]
