"""Batches of a data loader: what is taken as the model's inputs, and what a batch that does not fit says."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import FxcompressError
from fxcompress.graph.module import CompiledModule
from fxcompress.sqnr import sqnr
from fxcompress.training.batches import inputs_of, run_on
from tests.helpers import image, ready


class Scaled(nn.Module):
    """Adds a table of one length to a linear layer: other lengths do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * scale + torch.arange(x.shape[1]).view(-1, 1)
        return y


EXAMPLE = {"x": image(2, 5, 4), "scale": image(2, 1, 1, seed=1)}
FLOATS = {name: value.float() for name, value in EXAMPLE.items()}


def captured() -> CompiledModule:
    return fxcompress.capture(ready(Scaled()), EXAMPLE)


def test_a_mapping_is_asked_for_the_keyword_inputs() -> None:
    batch: Any = UserDict(**EXAMPLE, labels=torch.zeros(2))
    module = captured()
    args, kwargs = inputs_of(module, batch)
    assert args == ()
    assert kwargs.keys() == EXAMPLE.keys()
    assert torch.equal(run_on(module, batch), module(**EXAMPLE))


def test_a_batch_of_more_rows_runs() -> None:
    batch = {name: torch.cat([value, value]) for name, value in EXAMPLE.items()}
    assert run_on(captured(), batch).shape == (4, 5, 3)


WORDS = (
    r"^data: the model does not run on a batch of sizes \(2, 6, 4\) and \(2, 1, 1\): .*\. It was captured "
    r"with example inputs of sizes \(2, 5, 4\) and \(2, 1, 1\), .*max_length="
)


def test_a_batch_of_another_length_says_what_is_open() -> None:
    with pytest.raises(FxcompressError, match=WORDS):
        run_on(captured(), {"x": image(2, 6, 4), "scale": EXAMPLE["scale"]})


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_bits": 8, "quantizer": "ptq"},
        {"quant_bits": 4, "quantizer": "gptq"},
        {"sparsity": 0.5, "pruner": "taylor"},
        {"sparsity": 0.5, "pruner": "mean_activation"},
    ],
    ids=lambda entry: str(entry.get("pruner", entry.get("quantizer"))),
)
def test_algorithms_that_are_given_such_a_batch_say_so(entry: dict[str, Any]) -> None:
    class Two(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            y: Tensor = self.last(super().forward(x, scale).relu())
            return y

    batches = [EXAMPLE, {"x": image(2, 6, 4), "scale": EXAMPLE["scale"]}]
    entry = {**entry, "op_names": ["layer"]}
    with pytest.raises(FxcompressError, match=WORDS):
        fxcompress.compile(ready(Two()), [entry], EXAMPLE, data=batches, loss_fn=lambda y, _: y.sum())


def test_measuring_noise_on_such_a_batch_says_so() -> None:
    config = [{"quant_bits": 8, "quantizer": "ptq"}]
    module = fxcompress.compile(ready(Scaled()).float(), config, FLOATS, data=[FLOATS])
    with pytest.raises(FxcompressError, match=WORDS):
        sqnr(module, [FLOATS, FLOATS | {"x": image(2, 6, 4).float()}])


def test_an_error_that_has_nothing_to_do_with_sizes_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        run_on(captured(), {name: value.float() for name, value in EXAMPLE.items()})
