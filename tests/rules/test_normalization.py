"""Normalizations: per-channel ones share their axis; ones over channels are restricted, then plain again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from tests.helpers import (
    Function,
    apply_masks,
    check_exact,
    compiled,
    image,
    operators,
    ready,
    row_mask,
    shrunk,
    weight_shape,
)

GONE = {"rows": [1, 2], "bias": [1, 2]}


@pytest.mark.parametrize(
    ("norm", "left"),
    [
        (nn.BatchNorm2d(6), 4),
        (nn.BatchNorm2d(6, affine=False), 4),
        (nn.InstanceNorm2d(6, affine=True), 4),
        (nn.InstanceNorm2d(6), 4),
        (nn.GroupNorm(6, 6), 6),
        (nn.GroupNorm(2, 6), 6),
        (nn.BatchNorm2d(6, track_running_stats=False), 6),
    ],
    ids=lambda p: type(p).__name__,
)
def test_masks_from_outside_go_through_per_channel_norms_only(norm: nn.Module, left: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))
    small = shrunk(model, image(2, 3, 4, 4), {"0": GONE})
    assert weight_shape(small, "0")[0] in (4, left)


def test_a_zero_scale_makes_a_constant() -> None:
    model = ready(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 2, 1, padding=0))
    )
    masks = {"1": {"weight": row_mask(model.get_parameter("1.weight"), [0, 5])}}
    x = image(2, 3, 4, 4)
    small = fxcompress.speedup(model, x, masks=masks)
    check_exact(small, apply_masks(model, masks), x)
    assert weight_shape(small, "0")[0] == 4


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_is_restricted_and_turns_plain_again(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(groups, 8), nn.SiLU(), nn.Conv2d(8, 2, 1))
    x = image(2, 3, 4, 4)
    masked = compiled(model, x, exclude_op_names=["3"])
    small = fxcompress.speedup(masked)
    check_exact(small, masked, x)
    assert "fxcompress.group_norm" not in operators(small)
    norm = small.get_submodule("1")
    assert norm.num_channels == 4
    assert weight_shape(small, "1") == (4,)


def test_layer_norm_is_restricted_and_turns_plain_again() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    masked = compiled(model, image(4, 3), exclude_op_names=["3"])
    assert "fxcompress.layer_norm" in operators(masked)
    small = fxcompress.speedup(masked)
    check_exact(small, masked, image(4, 3))
    assert operators(small) == ["linear", "layer_norm", "gelu", "linear"]
    assert small.get_submodule("1").normalized_shape == (4,)


def test_a_restricted_norm_stays_restricted_where_a_masked_channel_stays() -> None:
    model = Function(
        lambda m, x: m.c(m.norm(m.a(x))), a=nn.Linear(3, 8), norm=nn.LayerNorm(8), c=nn.Linear(8, 2)
    )
    masked = compiled(model, image(4, 3), exclude_op_names=["c"])
    small = fxcompress.speedup(masked, round_to=3)
    check_exact(small, masked, image(4, 3))
    assert weight_shape(small, "a")[0] == 6
    assert "fxcompress.layer_norm" in operators(small)


def test_plain_layer_norm_keeps_externally_masked_channels_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    small = shrunk(model, image(2, 3), {"0": GONE})
    assert weight_shape(small, "0")[0] == 6
    assert "LayerNorm statistics run over it" in str(small.report)
    assert torch.is_tensor(small(image(2, 3)))


def test_a_softmax_module_over_channels_is_restricted_and_turns_plain_again() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Softmax2d(), nn.Conv2d(8, 2, 1))
    masked = compiled(model, image(2, 3, 4, 4), op_names=["0"])
    assert "fxcompress.softmax" in operators(masked)
    small = fxcompress.speedup(masked)
    check_exact(small, masked, image(3, 3, 4, 4))
    assert isinstance(small.get_submodule("1"), nn.Softmax2d)
    assert "fxcompress.softmax" not in operators(small)
