"""The MiniLM benchmark: its parts on toys, and the pretrained model where its package is installed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from benchmarks.minilm import (
    ALPHA,
    PACKAGE,
    Row,
    embeddings,
    in_batches,
    load_model,
    met,
    sentences,
    table_of,
)
from fxcompress.quantization import PTQ_Quantizer

MISSING = next((name for name in (PACKAGE, "transformers") if importlib.util.find_spec(name) is None), None)


def row(cosine: float, first: float, second: float) -> Row:
    return Row(1_000_000, cosine, cosine, {"batch 1": first, "batch 8": second}, None, None)


def test_embeddings_leave_padding_out() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]], [[0.0, 5.0], [7.0, 7.0], [7.0, 7.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    got = embeddings([states], [(mask, mask)])
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_sentences_are_many_and_always_the_same() -> None:
    found = sentences()
    assert len(set(found)) == len(found) > 500
    assert found == sentences()
    assert all(6 <= len(sentence.split()) <= 60 for sentence in found)


def test_goals_are_accuracy_speed_and_the_other_quantizers() -> None:
    def found(ours: Row, theirs: Row) -> bool:
        return met({"static, SmoothQuant": ours, "onnxruntime static": theirs, "onnxruntime dynamic": theirs})

    assert found(row(0.9985, 2.6, 2.5), row(0.99, 2.4, 2.5))
    assert not found(row(0.9979, 2.6, 2.5), row(0.99, 2.4, 2.5))
    assert not found(row(0.9985, 2.6, 2.5), row(0.99, 2.4, 2.6))
    assert not found(row(0.9985, 2.1, 2.5), row(0.99, 2.0, 2.0))


def test_the_table_has_a_line_for_each_file() -> None:
    table = table_of({"float32": row(1.0, 1.0, 1.0), "static": row(0.9934, 2.8, 2.75)})
    assert [list(column.cells) for column in table.columns][:4] == [
        ["float32", "static"], ["1.0000", "0.9934"], ["1.0000", "0.9934"], ["1.00x", "2.80x"],
    ]  # fmt: skip


@pytest.mark.skipif(MISSING is not None, reason=f"needs the package {MISSING}, which is not installed")
def test_smoothed_embeddings_are_near_those_of_the_pretrained_model() -> None:
    model, encode = load_model()
    chosen = sentences()
    calibration = in_batches(encode, chosen[:16])
    evaluation = in_batches(encode, chosen[16:24])
    found = []
    with torch.no_grad():
        expected = embeddings([model(*batch) for batch in evaluation], evaluation)
        for alpha in (None, ALPHA):
            quantizer = PTQ_Quantizer(
                model, [{"quant_bits": 8}], example_inputs=calibration[0], data=calibration, smooth=alpha
            )
            module = quantizer.compress().eval()
            got = embeddings([module(*batch) for batch in evaluation], evaluation)
            found.append(float((got * expected).sum(-1).mean()))
    assert len(quantizer.outcomes["smooth"].done) == 18
    assert found[0] < 0.996 < 0.9975 < found[1]
