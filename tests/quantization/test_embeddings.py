"""Tables of embeddings in integers: a step for each row, and rows looked up before they become floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fxcompress
from fxcompress.export.parity import open_session
from fxcompress.passes.convert import convert
from fxcompress.quantization import QAT_Quantizer
from fxcompress.sqnr import sqnr
from tests.helpers import ready

WORDS, WIDTH = 40, 12
TABLES = {"quant_bits": 8, "quantizer": "ptq", "op_types": ["Embedding"]}
SCHEMES = ["per_channel_symmetric", "per_channel_affine", "per_tensor_symmetric", "per_tensor_affine"]


class Words(nn.Module):
    """Words and places are looked up, words twice; the head's weight is the table of words."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH, padding_idx=0), nn.Embedding(6, WIDTH)
        self.mix, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places(torch.arange(ids.shape[1]))
        x = self.words(ids) + self.words(ids.flip(1)) + places
        out: Tensor = self.head(self.norm(self.mix(x).relu()))
        return out


def network(tied: bool = True) -> tuple[Words, Tensor]:
    torch.manual_seed(0)
    model = Words(tied)
    ready(model).float()
    return model, torch.randint(0, WORDS, (3, 6))


def quantized(config: list[dict[str, Any]], tied: bool = True) -> tuple[fxcompress.CompiledModule, Tensor]:
    model, ids = network(tied)
    return fxcompress.compile(model, config, (ids,), data=[(ids,)]), ids


def test_every_row_has_a_step_of_its_own() -> None:
    model, ids = network()
    with torch.no_grad():
        model.words.weight[1:] = torch.linspace(0.1, 4, WORDS - 1)[:, None] * torch.tensor([1.0, -0.5] * 6)
    module = fxcompress.compile(model, [{**TABLES, "op_names": ["words"]}], (ids,), data=[(ids,)])
    scale = module.get_buffer("fake_quant.words_weight.scale")
    torch.testing.assert_close(scale[1:], torch.linspace(0.1, 4, WORDS - 1) / 127)
    assert dict(module.get_submodule("fake_quant").named_children()).keys() == {
        "words_weight",
        "words_weight_1",
    }
    tables = [t for t in convert(module).buffers() if t.dtype == torch.int8]
    assert [table.shape for table in tables] == [(WORDS, WIDTH)]  # one, though it is read twice


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_looks_up_integers(scheme: str, bits: int, tmp_path: Path) -> None:
    module, ids = quantized([{**TABLES, "quant_bits": bits, "quant_scheme": {"weight": scheme}}])
    with torch.no_grad():
        truth = module.eval()(ids)
        assert torch.equal(convert(module)(ids), truth)
    report = fxcompress.export_onnx(module, tmp_path / "words.onnx")
    assert report.batches == (3, 4)
    given = {report.inputs[0]: ids.numpy()}
    found = open_session(tmp_path / "words.onnx").run(None, given)[0]
    np.testing.assert_allclose(found, truth.numpy(), rtol=1e-5, atol=1e-5)
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "words.onnx").graph.initializer}
    assert held["words_weight_integers"].dtype.itemsize == 1
    assert "words.weight" not in held  # the head reads it transposed
    assert report.lint is not None
    rows = {o.op: o.reason for o in report.lint.operators if o.op in ("Cast", "Gather", "Sub")}
    assert all(reason is None or "asked for" in reason.remedy for reason in rows.values())


def test_with_everything_else_in_integers_and_saved(tmp_path: Path) -> None:
    module, ids = quantized([{"quant_bits": 8, "quantizer": "ptq"}, TABLES], tied=False)
    report = fxcompress.export_onnx(module, tmp_path / "words.onnx")
    assert report.parity is None or report.parity.mismatches == 0
    fxcompress.save(module, tmp_path / "words.pt2")
    with torch.no_grad():
        assert torch.equal(fxcompress.load(tmp_path / "words.pt2")(ids), module(ids))
    layers = {row.layer: row for row in sqnr(module, [(ids,)]).rows}
    assert 30 < layers["words"].tensors["weight"] < 60


def test_a_table_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    model = ready(nn.Sequential(nn.Embedding(4000, 64), nn.Linear(64, 3))).float()
    ids = torch.randint(0, 4000, (2, 5))
    fxcompress.export_onnx(model, tmp_path / "float.onnx", (ids,))
    fxcompress.export_onnx(fxcompress.compile(model, [TABLES], (ids,)), tmp_path / "small.onnx")
    sizes = [(tmp_path / f"{name}.onnx").stat().st_size for name in ("small", "float")]
    assert sizes[0] < 0.28 * sizes[1]


def test_training_reaches_the_table() -> None:
    model, ids = network(tied=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantizer = QAT_Quantizer(model, [TABLES], optimizer, example_inputs=(ids,))
    module = quantizer.compress().train()
    before = module.get_parameter("words.weight").detach().clone()
    module(ids).square().mean().backward()
    optimizer.step()
    changed = (module.get_parameter("words.weight") != before).any(1)
    assert set(changed.nonzero().flatten().tolist()) == {*ids.flatten().tolist()} - {0}  # the padding stays


def test_methods_that_adjust_layers_leave_tables_alone() -> None:
    chosen = {"name": "ptq", "adaround": 20, "bias_correction": True}
    module, ids = quantized(
        [{**TABLES, "op_types": ["Embedding", "Linear"], "quantizer": chosen}], tied=False
    )
    assert module(ids).isfinite().all()


def test_columns_of_a_rounded_table_are_removed() -> None:
    model, ids = network(tied=False)
    both = [{"sparsity": 0.5, "op_names": ["mix"]}, {**TABLES, "op_names": ["words", "places"]}]
    module = fxcompress.compile(model, both, (ids,), data=[(ids,)])
    small = fxcompress.speedup(module.eval())
    assert small.get_parameter("mix.weight").shape[0] < WIDTH
    with torch.no_grad():
        torch.testing.assert_close(small(ids), module(ids), rtol=1e-4, atol=1e-5)
