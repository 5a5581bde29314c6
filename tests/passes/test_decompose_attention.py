"""decompose_attention: the same function in two products, and what of it runs on integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.calls import call_of
from fxcompress.passes.decompose_attention import decompose_attention
from fxcompress.passes.verify import verify
from tests.helpers import ready
from tests.runtime.networks import needs_vnni

ATTENTION = "scaled_dot_product_attention"


class Block(nn.Module):
    """Four query heads of 4; keys and values of two heads where queries are grouped."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        narrow = 8 if options.get("enable_gqa") else 16
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, narrow), nn.Linear(16, narrow)
        self.out = nn.Linear(16, 16)
        self.options = options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, mask, **self.options)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


def boolean() -> Tensor:
    """One row of the second example sees nothing at all."""
    mask = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[1, 0, 3] = False
    return mask


CASES: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "plain": ({}, None),
    "scale": ({"scale": 0.3}, None),
    "causal": ({"is_causal": True}, None),
    "boolean mask": ({}, boolean()),
    "float mask": ({}, torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(2))),
    "grouped queries": ({"enable_gqa": True}, None),
    "grouped queries, causal": ({"enable_gqa": True, "is_causal": True}, None),
}


def operators(module: fxcompress.CompiledModule) -> list[str]:
    return [call.op for node in module.graph.nodes if (call := call_of(node)) is not None]


def captured(case: str) -> tuple[fxcompress.CompiledModule, tuple[Tensor, ...]]:
    options, mask = CASES[case]
    torch.manual_seed(0)
    x = torch.randn(2, 6, 16)
    inputs = (x,) if mask is None else (x, mask)
    return fxcompress.capture(ready(Block(**options)).float(), inputs), inputs


@pytest.mark.parametrize("case", CASES)
def test_two_products_compute_what_attention_does(case: str) -> None:
    before, inputs = captured(case)
    after, _ = captured(case)
    assert decompose_attention(after, [ATTENTION]) == {
        ATTENTION: (f"{ATTENTION}_scores", f"{ATTENTION}_values")
    }
    assert operators(after).count("matmul") == 2
    assert ATTENTION not in operators(after)
    assert verify(before, after, (inputs, {})) < 1e-14
    more = tuple(torch.cat([x, x[:1]]) for x in inputs)
    assert verify(before, after, (more, {})) < 1e-14


def test_others_than_those_named_stay() -> None:
    module, _ = captured("plain")
    assert decompose_attention(module, ["q", "out"]) == {}
    assert ATTENTION in operators(module)


def test_attention_with_dropout_stays() -> None:
    module = fxcompress.capture(ready(Block(dropout_p=0.5)).float(), torch.randn(2, 6, 16))
    assert decompose_attention(module, [ATTENTION]) == {}


@needs_vnni
@pytest.mark.parametrize("case", ["plain", "boolean mask", "grouped queries, causal"])
def test_products_of_a_selected_attention_run_on_integers(case: str, tmp_path: Path) -> None:
    options, mask = CASES[case]
    torch.manual_seed(0)
    model, x = ready(Block(**options)).float(), torch.randn(2, 6, 16)
    inputs = (x,) if mask is None else (x, mask)
    config = [{"quant_bits": 8, "quantizer": "ptq", "op_types": ["default", ATTENTION]}]
    quantized = fxcompress.compile(model, config, inputs, data=[inputs])
    report = fxcompress.export_onnx(quantized, tmp_path / "model.onnx")
    assert report.lint is not None
    assert report.parity is not None
    kernels = [operator.kernel for operator in report.lint.operators if operator.op == "MatMul"]
    assert sorted(kernels) == ["MatMulIntegerToFloat", "QLinearMatMul"]
    assert report.parity.mismatches == 0
    with torch.no_grad():
        expected, got = model(*inputs), quantized(*inputs)
    assert 0 < (got - expected).abs().max() < 0.1 * expected.abs().max()


def test_attention_that_nobody_selects_stays_as_it_is() -> None:
    x = torch.randn(2, 6, 16)
    config = [{"quant_bits": 8, "quantizer": "ptq"}]
    quantized = fxcompress.compile(ready(Block()).float(), config, x, data=[x])
    assert ATTENTION in operators(quantized)
