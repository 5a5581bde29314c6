"""Convolutions: what goes of plain, grouped, depthwise and transposed ones, and constants behind padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import Function, image, shrunk, weight_shape

ROWS = {"rows": [1, 3], "bias": [1, 3]}
CONSTANT = {"rows": [1, 3, 4]}  # biases stay: constant channels


def chain(layer: nn.Module, width: int = 8, act: nn.Module | None = None) -> nn.Sequential:
    made = layer.out_channels
    assert isinstance(made, int)
    return nn.Sequential(nn.Conv2d(3, width, 1), act or nn.Identity(), layer, nn.Conv2d(made, 2, 1))


@pytest.mark.parametrize(
    ("padding", "mode"),
    [(0, "zeros"), (1, "zeros"), ("same", "zeros"), ((0, 2), "zeros"), (1, "reflect"), (1, "circular")],
)
def test_constant_channels_go_and_under_zero_padding_one_carries_them(padding: Any, mode: Any) -> None:
    layer = nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode)
    small = shrunk(chain(layer), image(2, 3, 6, 6), {"0": CONSTANT}, other=image(2, 3, 9, 7))
    carried = padding != 0 and mode == "zeros"
    assert weight_shape(small, "0")[0] == 5 + carried


def test_a_zero_needs_no_carrier() -> None:
    small = shrunk(
        chain(nn.Conv2d(8, 4, 3, padding=1)), image(2, 3, 5, 5), {"0": ROWS}, other=image(1, 3, 9, 9)
    )
    assert weight_shape(small, "0")[0] == 6


def test_the_carrier_takes_the_others_part_at_the_borders() -> None:
    model = chain(nn.Conv2d(8, 4, 3, padding=1, bias=False), act=nn.Sigmoid())
    small = shrunk(model, image(2, 3, 5, 5), {"0": ROWS}, other=image(2, 3, 3, 8))
    assert weight_shape(small, "0")[0] == 7
    assert small.get_submodule("2").bias is None, "under padding a bias would be wrong"


@pytest.mark.parametrize("padding", [0, 1])
def test_a_depthwise_convolution_passes_its_channels(padding: int) -> None:
    small = shrunk(
        chain(nn.Conv2d(8, 8, 3, groups=8, padding=padding)), image(2, 3, 5, 5), {"0": ROWS, "2": ROWS}
    )
    assert weight_shape(small, "2") == (6, 1, 3, 3)
    assert small.get_submodule("2").groups == 6
    assert weight_shape(small, "0")[0] == 6


def test_a_depthwise_constant_is_folded_into_what_reads_it() -> None:
    small = shrunk(chain(nn.Conv2d(8, 8, 3, groups=8)), image(2, 3, 5, 5), {"0": CONSTANT})
    assert weight_shape(small, "3") == (2, 5, 1, 1)


@pytest.mark.parametrize(
    ("rows", "width"),
    [([0, 4], 6), ([0, 1, 2, 3], 4), ([0, 5], 8), ([0, 4, 5], 6), ([1, 3, 5, 7], 4)],
    ids=["same of both", "a whole group", "unequal", "one more", "every other"],
)
def test_of_a_grouped_convolution_go_equal_channels_of_all_groups_or_whole_groups(
    rows: list[int], width: int
) -> None:
    layer = nn.Conv2d(8, 6, 3, groups=2, padding=1, bias=False)
    small = shrunk(chain(layer), image(2, 3, 5, 5), {"0": {"rows": rows, "bias": rows}})
    expected = {"groups": 2} if width != 4 or rows != [0, 1, 2, 3] else {"groups": 1}
    assert weight_shape(small, "0")[0] == width
    assert small.get_submodule("2").groups == expected["groups"]


@pytest.mark.parametrize(
    ("rank", "options"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (2, {"stride": 2, "output_padding": 1}),
        (2, {"padding": 1}),
        (2, {"groups": 2}),
    ],
)
def test_transposed_convolutions(rank: int, options: dict[str, int]) -> None:
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][rank - 1]
    transposed = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][rank - 1]
    model = nn.Sequential(conv(3, 8, 1), transposed(8, 6, 3, **options), conv(6, 2, 1))  # type: ignore[arg-type]
    rows = [0, 4]
    small = shrunk(
        model, image(2, 3, *[4] * rank), {"0": {"rows": rows, "bias": rows}, "2": {"columns": [1, 4]}}
    )
    assert weight_shape(small, "0")[0] == 6
    assert weight_shape(small, "1")[:2] == (6, 4 // options.get("groups", 1))


def test_a_shared_convolution_is_not_edited() -> None:
    model = Function(
        lambda m, x: m.head(m.c(torch.sigmoid(m.a(x))) + m.c(m.b(x))),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 6, 1), c=nn.Conv2d(6, 4, 1), head=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    gone = {"rows": [2], "bias": [2]}
    small = shrunk(model, image(2, 3, 4, 4), {"a": gone, "b": gone})
    assert weight_shape(small, "c")[1] == 6, "sigmoid(0) of one call must not go into the bias of both"
