"""Ratio, and the switches of quantizers while errors are measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.passes.insert_fake_quant import quantizers
from fxcompress.quantization.noise import Ratio, decibels, measuring, rounded_layers
from tests.helpers import image, ready


def test_a_ratio_adds_up_over_values() -> None:
    ratio = Ratio()
    ratio.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    ratio.add(torch.tensor([[5.0]]), torch.tensor([[5.5]]))
    ratio.add(torch.tensor([7]), torch.tensor([9]))  # integers are no signal
    ratio.add(3, 4)
    assert (ratio.signal, ratio.noise) == (50.0, 0.5)
    assert ratio.sqnr == pytest.approx(20.0) == decibels(0.01)


def test_no_noise_is_infinite_and_noise_without_signal_too() -> None:
    zeros = torch.zeros(2)
    assert Ratio(4.0, 0.0).sqnr == math.inf
    empty = Ratio()
    empty.add(zeros, zeros + 1)
    assert empty.sqnr == -math.inf


def test_switches_and_modes_come_back_after_an_error() -> None:
    x = image(4, 6).float()
    model = ready(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))).float()
    module = fxcompress.compile(model, [{"quantizer": "ptq"}], x, data=[x]).train()
    found = quantizers(module)
    found["0_weight"].quantizing = False  # type: ignore[assignment]
    seen: list[bool] = []

    def measure() -> None:
        with measuring(module):
            seen.extend([module.training, all(q.quantizing for q in found.values())])
            raise KeyError

    with pytest.raises(KeyError):
        measure()
    assert seen == [False, True]
    assert module.training
    assert [name for name, q in found.items() if not q.quantizing] == ["0_weight"]


def test_a_layer_called_twice_is_one_row_with_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(x).sin())  # type: ignore[no-any-return]

    x = image(4, 6).float()
    module = fxcompress.compile(ready(Twice()).float(), [{"quantizer": "ptq"}], x, data=[x])
    assert [len(calls) for calls in rounded_layers(module).values()] == [2]


def test_a_float_product_that_a_layer_reads_rounded_is_no_row() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.q(x)
            return self.o((q @ q.mT).softmax(-1) @ q)  # type: ignore[no-any-return]

    x = image(4, 5, 6).float()
    module = fxcompress.compile(ready(Attention()).float(), [{"quantizer": "ptq"}], x, data=[x])
    assert list(rounded_layers(module)) == ["q", "o"]
