"""Recurrent layers follow train mode: dropout between layers is there in training only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from tests.helpers import ready


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_acts_in_train_mode(kind: type[nn.Module]) -> None:
    model = ready(nn.Sequential(kind(3, 4, num_layers=2, dropout=0.5, batch_first=True)))
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    captured = fxcompress.capture(model, x)
    assert torch.equal(captured(x)[0], model(x)[0])
    assert torch.equal(captured(x)[0], captured(x)[0])
    for module in (captured, model):
        module.train()
        torch.manual_seed(0)
        first, second = module(x)[0], module(x)[0]
        assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(captured(x)[0], first)
