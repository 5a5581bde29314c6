"""propagate: which slices are constant, and which must stay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.calls import Reference
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.insert_masks import insert_masks
from fxcompress.passes.propagate import live_slices, propagate_constants
from fxcompress.rules.flow import Flow
from fxcompress.rules.values import Values
from tests.helpers import Function, image, ready, row_mask, target_name


def analyzed(
    model: nn.Module, x: Tensor, gone: dict[str, list[int]]
) -> tuple[fxcompress.CompiledModule, Flow, Values]:
    module = fxcompress.capture(ready(model), x)
    insert_masks(module, {n: row_mask(module.get_parameter(n), rows) for n, rows in gone.items()})
    flow = analyze_axes(module)
    return module, flow, propagate_constants(module, flow)


def constants(module: fxcompress.CompiledModule, values: Values, op: str, dim: int = 1) -> Tensor:
    node = next(n for n in module.graph.nodes if target_name(n) == op and n.op.startswith("call"))
    found = values.slices(node, dim)
    assert found is not None
    return found


def test_a_masked_filter_is_its_bias_then_what_follows_makes_of_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    module, _, values = analyzed(model, image(2, 3, 5, 5), {"0.weight": [1, 3], "0.bias": [3]})
    conv, norm = module.get_submodule("0"), module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    made = constants(module, values, "call")
    assert made.isnan().tolist() == [True, False, True, False]
    assert float(made[1]) == float(conv.bias[1].detach())  # type: ignore[index]
    assert float(made[3]) == 0
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    normalized = (made - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
    expected = torch.sigmoid(normalized)
    torch.testing.assert_close(
        constants(module, values, "2"), expected.detach(), rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_value_of_a_function_at_zero_counts(bias: bool) -> None:
    model = Function(
        lambda m, x: m.b(torch.exp(m.a(x)) + 1.0), a=nn.Linear(3, 4, bias=bias), b=nn.Linear(4, 2)
    )
    gone = {"a.weight": [2]} | ({"a.bias": [2]} if bias else {})
    module, _, values = analyzed(model, image(2, 3), gone)
    assert float(constants(module, values, "add")[2]) == 2.0


def test_zero_times_anything_is_zero_but_infinity_is_no_constant() -> None:
    model = Function(
        lambda m, x: m.b(m.a(x) * x.exp()) + m.b(m.a(x).log()), a=nn.Linear(3, 3), b=nn.Linear(3, 2)
    )
    module, _, values = analyzed(model, image(2, 3), {"a.weight": [1], "a.bias": [1]})
    nodes = [n for n in module.graph.nodes if "mul" in str(n) and n.args[0].op != "get_attr"]
    found = values.slices(nodes[0], 1)
    assert found is not None
    assert [math.isnan(v) for v in found.tolist()] == [True, False, True]
    log = next(n for n in module.graph.nodes if target_name(n) == "log")
    assert values.slices(log, 1) is None


def kept(flow: Flow, values: Values, name: str, dim: int, round_to: int | None = None) -> list[int]:
    axis = flow.axes(Reference(name))[dim]
    return live_slices(flow, values, round_to=round_to)[id(axis.find())].nonzero()[0].tolist()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def test_masked_and_unread_slices_need_not_stay() -> None:
    module, flow, values = analyzed(mlp(), image(2, 3), {"0.weight": [0, 5], "0.bias": [0]})
    assert kept(flow, values, "0.weight", 0) == [1, 2, 3, 4, 6, 7]
    insert_masks(module, {"2.weight": (torch.arange(8) != 3).double().expand(2, 8)})
    flow = analyze_axes(module)
    values = propagate_constants(module, flow)
    assert kept(flow, values, "0.weight", 0) == [1, 2, 4, 6, 7]


def test_an_axis_keeps_at_least_one_slice() -> None:
    rows = list(range(8))
    _, flow, values = analyzed(mlp(), image(2, 3), {"0.weight": rows, "0.bias": rows})
    assert kept(flow, values, "0.weight", 0) == [0]


def test_the_one_slice_kept_of_a_dead_axis_decides_what_is_kept_further_up() -> None:
    """The last layer reads one dead channel: it stays with what it reads, and nothing else does."""
    # Circular padding is an operator of its own, and the weight is read at the top of the graph.
    second = nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), second, nn.Conv2d(4, 4, 1))
    gone = {"0.weight": [0, 2, 4], "0.bias": [0, 2, 4], "1.weight": [1, 3], "1.bias": [1, 3]}
    module, _, _ = analyzed(model, image(2, 3, 6, 6), gone)
    reads_the_dead = torch.tensor([0.0, 1, 0, 1]).view(1, 4, 1, 1).expand(4, 4, 1, 1)
    insert_masks(module, {"2.weight": reads_the_dead})
    flow = analyze_axes(module)
    values = propagate_constants(module, flow)
    assert kept(flow, values, "2.weight", 1) == [0]
    assert kept(flow, values, "0.weight", 0) == [1, 3, 5]


def test_rounding_keeps_the_first_of_those_that_could_go() -> None:
    _, flow, values = analyzed(mlp(), image(2, 3), {"0.weight": [1, 3, 5], "0.bias": [1, 3, 5]})
    assert kept(flow, values, "0.weight", 0, round_to=3) == [0, 1, 2, 4, 6, 7]
    assert kept(flow, values, "0.weight", 0, round_to=16) == list(range(8))


def test_dead_slices_are_found_through_several_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
    module = fxcompress.capture(ready(model), image(2, 3))
    insert_masks(module, {"4.weight": torch.tensor([1.0, 0, 1, 1]).expand(2, 4)})
    diagonal = torch.eye(4)
    insert_masks(module, {"2.weight": diagonal})
    flow = analyze_axes(module)
    values = propagate_constants(module, flow)
    assert kept(flow, values, "2.weight", 0) == [0, 2, 3]
    assert kept(flow, values, "0.weight", 0) == [0, 2, 3]


def test_a_constant_behind_padding_stays_as_the_carrier_of_the_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 3, padding=1))
    _, flow, values = analyzed(model, image(2, 3, 5, 5), {"0.weight": [1, 2, 4], "0.bias": [4]})
    left = kept(flow, values, "0.weight", 0)
    assert len(left) == 3
    assert set(left) - {1, 2} == {0, 3}
