"""Ranges of several processes; that two of them agree is seen in tests/quantization/test_training_loop.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed

from fxcompress.numerics.agreement import alone, averaged, united
from fxcompress.numerics.observers import extremes


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_what_stands_for_a_batch_has_its_extremes(axis: int | None) -> None:
    x = torch.tensor([[[1.0, -2.0], [3.0, 0.5]], [[-4.0, 6.0], [7.0, 8.0]]])
    for got, expected in zip(
        extremes(united(*extremes(x, axis), axis), axis), extremes(x, axis), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("_group")
def test_one_process_is_alone_and_its_own_mean() -> None:
    assert alone()
    assert averaged(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
