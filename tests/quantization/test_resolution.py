"""Channels that one scale for a whole weight loses are named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.quantization import PTQ_Quantizer
from tests.helpers import image

X = image(4, 2, 5, 5).float()


def uneven() -> nn.Module:
    """4 bits hold 7 steps: of a largest weight 7.0 one of 0.4 is lost, one of 0.6 is not."""
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1))
    rows = torch.tensor([7.0, 0.4, 0.6, 0.0])
    with torch.no_grad():
        for layer in (model[0], model[2]):
            assert isinstance(layer, nn.Conv2d)
            layer.weight.copy_(rows.view(4, 1, 1, 1).expand_as(layer.weight))
    return model.eval()


def quantizer(scheme: str, bits: int = 4, **options: Any) -> PTQ_Quantizer:
    config = [{"quant_bits": {"weight": bits}, "quant_scheme": {"weight": scheme}}]
    return PTQ_Quantizer(uneven(), config, example_inputs=X, data=[X], **options)


def test_channels_that_are_rounded_to_nothing_are_counted() -> None:
    with pytest.warns(UserWarning, match=r"to nothing: '0' \(1 of 3\), '2' \(1 of 3\); give 'quant_scheme'"):
        quantizer("per_tensor_symmetric").compress()


@pytest.mark.parametrize(("scheme", "bits"), [("per_channel_symmetric", 4), ("per_tensor_symmetric", 8)])
def test_where_all_channels_are_held_nothing_is_said(scheme: str, bits: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer(scheme, bits).compress()


@pytest.mark.parametrize(
    ("scheme", "noted"), [("per_channel_symmetric", True), ("per_tensor_symmetric", False)]
)
def test_equalization_of_weights_with_a_scale_per_channel_is_doubted(scheme: str, noted: bool) -> None:
    notes = quantizer(scheme, 8, equalize=True).compress().notes
    assert any("2 of 2 layers have a scale per output channel" in note for note in notes) == noted
