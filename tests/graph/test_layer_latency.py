"""Seconds by layer: those of the layer that takes them, once per round, in eval mode."""

from __future__ import annotations

import time

import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.graph.cost import count_macs
from fxcompress.graph.layer_latency import compare_layer_latency


class Sleeper(nn.Module):
    """Takes ``seconds``, and remembers how often and in which mode it was called."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        time.sleep(self.seconds)
        return x


def chain(*layers: nn.Module) -> fx.GraphModule:
    graph = fx.Graph()
    value = graph.placeholder("x")
    for index in range(len(layers)):
        value = graph.call_module(str(index), (value,))
    graph.output(value)
    return fx.GraphModule({str(i): layer for i, layer in enumerate(layers)}, graph)


def test_a_slow_layer_has_the_time_it_takes() -> None:
    module = chain(Sleeper(0.02), Sleeper(0.0))
    found = compare_layer_latency({"a": module}, ((torch.zeros(1),), {}), rounds=3, warmup=0)["a"]
    assert list(found) == ["0", "1"]
    assert all(second >= 0.02 for second in found["0"].seconds)
    assert len(found["0"].seconds) == 3
    assert found["1"].median < found["0"].median


def test_a_layer_that_is_called_twice_has_both_calls() -> None:
    layer = Sleeper(0.01)
    graph = fx.Graph()
    value = graph.placeholder("x")
    graph.output(graph.call_module("layer", (graph.call_module("layer", (value,)),)))
    module = fx.GraphModule({"layer": layer}, graph)
    found = compare_layer_latency({"a": module}, ((torch.zeros(1),), {}), rounds=1, warmup=0)
    assert found["a"]["layer"].median >= 0.02


def test_modules_take_turns_in_eval_mode_and_are_left_as_they_were() -> None:
    first, second = chain(Sleeper(0.0)), chain(Sleeper(0.0))
    compare_layer_latency({"a": first, "b": second}, ((), {"x": torch.zeros(1)}), rounds=2, warmup=1)
    for module in (first, second):
        sleeper = module.get_submodule("0")
        assert isinstance(sleeper, Sleeper)
        assert sleeper.modes == [False] * 3
        assert module.training


def test_masked_layers_have_the_names_that_macs_have() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    masked = fxcompress.compile(model, [{"sparsity": 0.5, "op_names": ["0"]}], torch.randn(2, 4))
    found = compare_layer_latency({"a": masked}, masked.example_inputs, rounds=1)["a"]
    assert set(count_macs(masked, masked.example_inputs).by_layer) == {"0", "2"} <= set(found)
