"""Costs against numbers worked out by hand. All comparisons are of integers: no tolerance."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress import ops
from fxcompress.graph.cost import (
    Latency,
    as_call,
    compare_latency,
    count_bytes,
    count_macs,
    count_parameters,
    measure_latency,
)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embed(tokens))
        return logits


class Branches(nn.Module):
    """An image and a keyword in; a convolution called twice, a depthwise one, a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.depthwise = nn.Conv2d(3, 6, 3, groups=3)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        y = self.norm(self.depthwise(self.conv(self.conv(x)) * scale)).flatten(2)
        return torch.matmul(y, y.transpose(1, 2))


BRANCHES_MACS = {"conv": 2 * 64 * 3 * 27, "depthwise": 36 * 6 * 9}
ATTENTION = 6 * 36 * 6
CALL = ((torch.randn(4, 3, 8, 8),), {"scale": torch.tensor(2.0)})


def test_shared_parameters_are_counted_once() -> None:
    assert count_parameters(Tied()) == 40
    assert count_bytes(Tied()) == 160


def test_bytes_include_buffers_but_not_masks() -> None:
    layer = nn.BatchNorm1d(5)
    assert count_bytes(layer) == 4 * 5 * 4 + 8
    layer.register_buffer("weight_mask", torch.ones(5))
    layer.register_buffer("attention_mask", torch.ones(3, dtype=torch.bool))
    assert count_bytes(layer) == 4 * 5 * 4 + 8 + 3


def test_macs_of_a_module_per_layer_and_in_total() -> None:
    count = count_macs(Branches(), CALL)
    assert count.by_layer == {**BRANCHES_MACS, "": ATTENTION}
    assert (count.total, count.batch) == (sum(BRANCHES_MACS.values()) + ATTENTION, 1)


def test_macs_of_a_graph_are_booked_on_its_layers_and_nodes() -> None:
    count = count_macs(fx.symbolic_trace(Branches()), CALL)
    assert count.by_layer == {**BRANCHES_MACS, "matmul": ATTENTION}


def test_masked_and_functional_layers_keep_their_layer_names() -> None:
    root = nn.Module()
    root.layer = nn.Linear(4, 6)
    root.other = nn.Linear(6, 2)
    root.layer.register_buffer("weight_mask", torch.ones(6, 4))
    root.other.register_buffer("weight_mask", torch.ones(2, 6))
    graph = fx.Graph()
    x = graph.placeholder("x")
    masked = graph.call_function(
        torch.mul, (graph.get_attr("layer.weight"), graph.get_attr("layer.weight_mask"))
    )
    called = graph.call_function(ops.call, (graph.get_attr("layer"), x), {"weight": masked})
    masked = graph.call_function(
        torch.mul, (graph.get_attr("other.weight"), graph.get_attr("other.weight_mask"))
    )
    graph.output(graph.call_function(torch.ops.aten.linear.default, (called, masked)))
    count = count_macs(fx.GraphModule(root, graph), torch.randn(3, 4))
    assert count.by_layer == {"layer": 24, "other": 12}


class Products(nn.Module):
    """A product of what two layers of a submodule yield."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner["a"](x) @ self.inner["b"](x)
        return y


def test_an_operator_that_reads_a_masked_layer_keeps_its_own_name() -> None:
    x = torch.randn(2, 4, 4)
    masked = fxcompress.compile(Products(), [{"sparsity": 0.5, "pruner": "level"}], x)
    assert count_macs(masked, x).by_layer == count_macs(fxcompress.capture(Products(), x), x).by_layer


def test_attention_and_recurrence_are_counted() -> None:
    width, steps = 8, 5
    attention = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True).eval()
    projections, products = 4 * width * width * steps, 2 * steps * steps * width
    assert (
        count_macs(attention, torch.randn(2, steps, width)).total
        == projections + products + 2 * 16 * width * steps
    )
    lstm = nn.LSTM(width, 4, batch_first=True)
    assert count_macs(lstm, torch.randn(1, steps, width)).total == steps * (16 * width + 16 * 4)


def test_counting_leaves_mode_and_statistics_alone() -> None:
    model = Branches().train()
    before = copy.deepcopy(model.state_dict())
    count_macs(model, CALL)
    assert model.training
    assert model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class ReadsValues(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if bool(input.sum() > 0) else input


def test_a_module_that_reads_values_is_counted_for_real() -> None:
    assert count_macs(ReadsValues(3, 4), torch.ones(2, 3)).total == 12


class Pairs(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.view(2, -1, self.in_features))


def test_a_module_that_refuses_a_batch_of_one_is_counted_as_given() -> None:
    count = count_macs(Pairs(3, 4), torch.ones(4, 3))
    assert (count.total, count.batch) == (4 * 12, 4)


def test_a_failing_module_raises_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_macs(nn.Linear(3, 4), torch.ones(2, 5))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (1, ((1,), {})),
        ((1, 2), ((1, 2), {})),
        ({"a": 1}, ((), {"a": 1})),
        (((1,), {"a": 2}), ((1,), {"a": 2})),
    ],
)
def test_inputs_come_in_four_forms(inputs: Any, expected: Any) -> None:
    assert as_call(inputs) == expected


def test_candidates_are_timed_in_turns() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.005)

    result = compare_latency({"fast": lambda: calls.append("fast"), "slow": slow}, rounds=5, warmup=2)
    assert calls == ["fast", "slow", "slow", "fast"] * 3 + ["fast", "slow"]
    lower, upper = result["slow"].quartiles
    assert 0 < result["fast"].median < 0.005 <= lower <= result["slow"].median <= upper
    assert result["slow"].to_dict()["runs"] == 5


def test_a_ratio_is_taken_within_rounds() -> None:
    disturbed, reference = Latency((1.0, 10.0, 1.2)), Latency((2.0, 20.0, 2.0))
    assert disturbed.ratio_to(reference) == 0.5
    assert disturbed.median == 1.2
    assert disturbed.quartiles == pytest.approx((1.1, 5.6), abs=1e-12)


def test_latency_needs_a_round() -> None:
    assert measure_latency(lambda: None, rounds=1, warmup=0).to_dict()["runs"] == 1
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        measure_latency(lambda: None, rounds=0)


class LearnedQueries(nn.Module):
    """A parameter is the input of a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 5, 4))
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.queries) + x
        return result


def test_a_parameter_may_be_the_input_of_a_layer() -> None:
    model = LearnedQueries()
    assert count_macs(model, torch.randn(2, 5, 6)).by_layer == {"layer": 5 * 4 * 6}
    assert model.queries.requires_grad
