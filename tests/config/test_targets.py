"""What of a model can be selected, and by which type names."""

from __future__ import annotations

import torch
from torch import nn

from fxcompress.config.targets import Target, is_operator, targets_of_model


class PaddedConv(nn.Conv2d):
    """A subclass, as timm's Conv2dSame."""


class Scale(nn.Module):
    """A layer of the user's own, without children."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))


class Twice(nn.Module):
    """Holds one layer under two names, a subclass of Sequential, and a leaf of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.body = nn.Sequential(PaddedConv(3, 4, 3), nn.ModuleList([nn.ReLU()]))
        self.decoder = self.encoder
        self.scale = Scale()


def test_leaves_are_targets_and_containers_are_not() -> None:
    assert targets_of_model(Twice()) == [
        Target("encoder", ("Linear",), aliases=("decoder",)),
        Target("body.0", ("PaddedConv", "Conv2d")),
        Target("body.1.0", ("ReLU",)),
        Target("scale", ("Scale",)),
    ]


def test_a_model_that_is_one_layer_is_its_own_target() -> None:
    assert targets_of_model(nn.Linear(2, 2)) == [Target("", ("Linear",))]


def test_a_torch_layer_with_children_is_a_target_and_so_are_they() -> None:
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8))
    by_name = {target.name: target.op_types for target in targets_of_model(model)}
    assert by_name["0"] == ("MultiheadAttention",)
    assert "Linear" in by_name["0.out_proj"]
    assert "1" not in by_name
    assert by_name["1.linear1"] == ("Linear",)


def test_functions_that_may_become_nodes_are_known() -> None:
    assert all(map(is_operator, ["matmul", "add", "scaled_dot_product_attention", "conv2d"]))
    assert not any(map(is_operator, ["Conv2D", "matmull", "__add__", ""]))
