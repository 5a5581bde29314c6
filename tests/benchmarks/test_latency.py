"""The latency and compiler-speed benchmarks: their parts, on toys."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.compiler_speed import Timing, conv_chain, summary_of
from benchmarks.compiler_speed import table_of as speed_table
from benchmarks.latency import Comparison, at_widths_of, compare, record_of, table_of, training_step
from fxcompress.graph.cost import Latency


def net(width: int) -> nn.Sequential:
    layers = (nn.Conv2d(3, width, 3, stride=2, bias=False), nn.BatchNorm2d(width, eps=1e-2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).eval()


def test_the_direct_model_has_fresh_layers_of_the_small_widths_and_the_same_numbers() -> None:
    big, small = net(8), net(4)
    direct = at_widths_of(big, small)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(direct(x), small(x))
    assert not {id(m) for m in direct.modules()} & {id(m) for m in [*big.modules(), *small.modules()]}


def test_a_folded_norm_becomes_an_identity() -> None:
    small = net(4)
    small[1] = nn.Identity()
    assert isinstance(at_widths_of(net(8), small)[1], nn.Identity)  # type: ignore[index]


def test_a_training_step_moves_the_weights() -> None:
    model = net(4)
    before = model[0].weight.detach().clone()  # type: ignore[operator]
    training_step(model, torch.randn(4, 3, 9, 9), torch.arange(4))()
    assert model.training
    assert not torch.equal(before, model[0].weight)  # type: ignore[arg-type]


def test_goals_bound_the_ratio_within_rounds() -> None:
    fast, slow = Latency((1.0, 2.0, 9.0)), Latency((1.1, 2.2, 1.0))
    assert Comparison("a", slow, fast, 1.15).met
    assert not Comparison("a", slow, fast, 1.05).met
    assert Comparison("a", slow, fast, None).met
    table = table_of({"a": record_of(Comparison("a", slow, fast, 1.05))})
    assert list(table.columns[-1].cells) == ["MISSED"]
    measured = compare("b", {"candidate": lambda: None, "reference": lambda: None}, None, rounds=2)
    assert record_of(measured)["candidate"]["runs"] == 2


def test_chains_are_as_long_and_wide_as_asked() -> None:
    chain = conv_chain(3, 16)
    assert [m.out_channels for m in chain.modules() if isinstance(m, nn.Conv2d)] == [16, 16, 16]
    assert chain(torch.randn(1, 3, 8, 8)).shape == (1, 10)


def test_growth_is_linear_where_seconds_follow_the_nodes() -> None:
    short = Timing("chain of 10, width 64", 100, 9, 1.0, 1.5, 0.5, 3.0, None)
    long = Timing("chain of 800, width 64", 8000, 9, 1.0, 1.5, 40.0, 3.0, 20.0)
    assert short.per_node == 5.0
    assert speed_table([short, long]).row_count == 2
    facts = summary_of([short, long])
    assert facts["growth in nodes"] == 1.0
    assert facts["growth in parameters"] is None
    assert facts["least"] == ("chain of 800, width 64", 0.5)
