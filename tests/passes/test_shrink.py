"""shrink: slices go physically; literals, attributes, biases and names follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from tests.helpers import Body, Function, image, operators, shrunk, targets, weight_shape

GONE = {"rows": [1, 2], "bias": [1, 2]}


def test_widths_attributes_and_biases_before_and_after() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 4, 3, padding=1), nn.PReLU(4)
    )
    x = image(2, 3, 5, 5)
    small = shrunk(
        model, x, {"0": {"rows": [1, 2], "bias": [2]}, "3": {"columns": [4]}}, other=image(2, 3, 8, 7)
    )
    # 1 and 2 are constants behind padding: one carries the other. 4 is not read.
    assert weight_shape(small, "0") == (4, 3, 1, 1)
    assert small.get_submodule("0").out_channels == 4
    assert small.get_submodule("3").in_channels == 4
    assert small.get_submodule("1").num_features == 4
    assert targets(small) == ["0", "1", "2", "3", "4"]


def test_a_layer_without_bias_gets_one_where_a_constant_is_folded_into_it() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 2, bias=False))
    small = shrunk(model, image(2, 3), {"0": GONE})
    assert weight_shape(small, "2") == (2, 4)
    assert small.get_submodule("2").get_parameter("bias").shape == (2,)


LITERALS: dict[str, tuple[Body, list[int]]] = {
    "view": (lambda m, x: m.b(m.a(x).view(x.shape[0], 6, 20).mean(2)), [4]),
    "view of the batch": (lambda m, x: m.b(m.a(x).mean((2, 3)).view(x.shape[0] * 6).view(-1, 6)), [6]),
    "reshape": (lambda m, x: m.b(m.a(x).reshape(-1, 6, 4, 5).amax((2, 3))), [4]),
    "flatten": (lambda m, x: m.c(m.a(x).flatten(1)), [4]),
    "expand": (lambda m, x: m.b(m.a(x).mean((2, 3), True).expand(-1, 6, 3, 2).sum((2, 3))), [4]),
    "split": (lambda m, x: m.b(torch.cat(m.a(x).mean((2, 3)).split([2, 4], 1)[::-1], 1)), [4]),
    "chunk": (lambda m, x: m.b(torch.cat(m.a(x).mean((2, 3)).chunk(2, 1), 1)), [4]),
    "ones": (lambda m, x: m.b(m.a(x).mean((2, 3)) * x.new_ones(x.shape[0], 6)), [4]),
}


@pytest.mark.parametrize("name", LITERALS)
def test_literal_sizes_follow(name: str) -> None:
    body, widths = LITERALS[name]
    model = Function(body, a=nn.Conv2d(3, 6, 1), b=nn.Linear(6, 2), c=nn.Linear(120, 2))
    small = shrunk(model, image(2, 3, 4, 5), {"a": GONE})
    assert weight_shape(small, "a")[0] in widths


def test_masks_are_baked_in_and_calls_are_module_calls_again() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    small = shrunk(model, image(2, 3), {"0": {"rows": [1], "scatter": 0.5, "seed": 3}})
    assert targets(small) == ["0", "1", "2"]
    assert not [name for name in small.state_dict() if "mask" in name]
    assert bool((small.get_submodule("0").get_parameter("weight") == 0).any())


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.proj, self.out = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.out(self.embed(ids) * torch.sigmoid(self.proj(self.embed(ids))))
            return y

    ids = torch.tensor([[1, 2], [3, 4]])
    small = shrunk(Tied(), ids, {"embed": {"columns": [0, 4]}})
    assert small.get_parameter("out.weight") is small.get_parameter("embed.weight")
    assert small.get_parameter("embed.weight").shape == (7, 4)
    assert small.get_submodule("embed").embedding_dim == 4


def test_what_the_graph_no_longer_reads_is_dropped() -> None:
    model = Function(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 4), b=nn.Linear(4, 2), spare=nn.Linear(5, 5))
    small = shrunk(model, image(2, 3), {"a": GONE})
    assert sorted(small.state_dict()) == ["a.bias", "a.weight", "b.bias", "b.weight"]


def test_nothing_masked_leaves_everything() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    small = shrunk(model, image(2, 3), {"0": {}})
    assert operators(small) == ["linear", "relu", "linear"]
    assert weight_shape(small, "0") == (4, 3)
    assert fxcompress.speedup(small).report.kept == ()


def test_what_becomes_uniform_by_losing_slices_is_folded_too() -> None:
    """Only the last row is read: what is left of the learned rows is one number per channel, a constant."""

    def forward(m: Any, x: Tensor) -> Tensor:
        rows = m.rows.expand(x.shape[0], -1, -1)
        return m.b(m.a(rows)[:, -1] + x)  # type: ignore[no-any-return]

    model = Function(forward, a=nn.Linear(5, 6), b=nn.Linear(6, 2))
    model.rows = nn.Parameter(torch.ones(1, 3, 5))
    x = image(4, 6)
    small = shrunk(model, x, {"a": {"rows": [1]}})
    assert tuple(small.get_parameter("rows").shape) == (1, 1, 1)
    assert weight_shape(small, "a") == (6, 1)
