"""count_stored_bytes: packed integers, scales, and what stays float."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import FxcompressError
from fxcompress.quantization.storage import count_stored_bytes, rounded_tensors
from tests.helpers import Function, image, ready

X = image(4, 3, 8, 8).float()
CONFIG = {"quantizer": "ptq", "op_names": ["conv"], "quant_bits": {"weight": 4, "input": 8, "output": 6}}


def net() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.fc(torch.relu(m.conv(x)).flatten(1))
        return out

    return ready(Function(forward, conv=nn.Conv2d(3, 5, 3), fc=nn.Linear(180, 2))).float()


def test_by_hand() -> None:
    """conv: 135 weights of 4 bits, 5 scales, 5 biases; fc: 360 + 2 floats. An activation has a scale and a
    zero point: 3·8·8 inputs of 8 bits, 5·6·6 outputs of 6.
    """
    config = [{**CONFIG, "quant_types": ["weight", "input", "output"]}]
    module = fxcompress.compile(net(), config, X, data=[X])
    assert count_stored_bytes(module) == 135 / 2 + 5 * 4 + 5 * 4 + 362 * 4
    tensors = {t.members: t for t in rounded_tensors(module).values()}
    assert tensors[(("conv", "weight"),)].numel == 135
    assert tensors[(("conv", "input"),)].bytes == 192 + 5
    assert tensors[(("conv", "output"), ("fc", "input"))].bytes == 180 * 6 / 8 + 5


def test_groups_have_scales_and_zero_points_of_their_own() -> None:
    x = image(4, 64).float()
    model = ready(nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))).float()
    module = fxcompress.compile(model, [{"quantizer": "weight_only", "op_names": ["0"]}], x)
    module(x)
    assert count_stored_bytes(module) == 512 / 2 + 8 * 2 * (4 + 1) + (8 + 24 + 3) * 4


def test_a_weight_that_is_read_in_floats_too_is_stored_twice() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out: Tensor = m.fc(x) @ m.fc.weight
        return out

    x = image(4, 6).float()
    model = ready(Function(forward, fc=nn.Linear(6, 6))).float()
    config = [{"quantizer": "naive", "quant_bits": 8, "op_names": ["fc"]}]
    module = fxcompress.compile(model, config, x)
    module(x)
    assert count_stored_bytes(module) == 36 + 6 * 4 + (36 + 6) * 4


def test_what_one_layer_makes_and_another_reads_is_one_tensor() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))).float()
    module = fxcompress.compile(model, [{"quantizer": "ptq"}], X, data=[X])
    members = {t.members for t in rounded_tensors(module).values()}
    assert (("0", "output"), ("2", "input")) in members
    assert len(members) == 5


def test_numbers_that_are_no_grid_are_refused() -> None:
    x = image(4, 6).float()
    module = fxcompress.compile(ready(nn.Sequential(nn.Linear(6, 3))).float(), [{"quantizer": "bnn"}], x)
    with pytest.raises(FxcompressError, match=r"'0_weight': expected one that rounds to a grid .*, got "):
        count_stored_bytes(module)
