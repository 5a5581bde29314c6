"""The benchmark of few bits: its parts on few steps; the documented figures are the recorded ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.low_bits import HIDDEN, METHODS, STEM, Method, documented, net, run_seed, summary_of, table_of
from benchmarks.results_file import LONG, ROOT, read_json
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.quantization import QUANTIZERS
from fxcompress.quantization.dorefa import DoReFaWeight


def test_rows_hold_every_method_and_its_network_in_floats() -> None:
    methods = [Method("lsq+", 2, 2), Method("bnn", 1, 1, nn.Hardtanh)]
    rows = run_seed(0, methods, scale=0.02)
    assert list(rows) == ["float ReLU", "lsq+ w2a2", "float Hardtanh", "bnn w1a1"]
    assert all(0 <= value <= 1 for value in rows.values())


def test_losses_are_those_against_the_same_network() -> None:
    one = {"float ReLU": 0.99, "float Hardtanh": 0.9, "qat w2a2": 0.95, "bnn w1a1": 0.88}
    other = {"float ReLU": 0.97, "float Hardtanh": 0.9, "qat w2a2": 0.97, "bnn w1a1": 0.86}
    summary = summary_of({"0": one, "1": other})
    assert summary["qat w2a2"] == {"mean": 0.96, "spread": 0.0141, "loss": 2.0}
    assert summary["bnn w1a1"] == {"mean": 0.87, "spread": 0.0141, "loss": 3.0}
    assert table_of(summary).row_count == 4


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_methods_quantize_what_their_names_say(method: Method) -> None:
    model = net(method.activation).eval()
    quantizer = QUANTIZERS[method.name](model, method.config(), example_inputs=torch.zeros(2, 1, 8, 8))
    module = quantizer.compress()
    stem, hidden = (
        {tensor: q.grid.bits for tensor, q in quantizer.quantizers_of(name).items()} for name in (STEM, "3")
    )
    w, a = method.weights, method.activations
    if method.name == "dorefa":
        found = {name: q.bits for name, q in quantizers(module).items() if isinstance(q, DoReFaWeight)}
        assert found == {f"{name}_weight": w for name in HIDDEN}
    elif method.name == "bnn":
        assert set(quantizers(module)) == {"3_weight", "6_weight", "2_output", "5_output", "8_output"}
    else:
        assert stem == {"weight": 8, "input": 8, "output": a}
        assert hidden == {"weight": w, "input": a, "output": a}


def test_the_documented_figures_are_the_recorded_ones() -> None:
    record = read_json(LONG / "low_bits.json")
    page = (ROOT / "docs" / "quantization.md").read_text(encoding="utf-8")
    for line in documented(record["summary"]):
        assert line in page
    assert f"mean of {len(record['runs'])} seeds" in " ".join(page.split())
