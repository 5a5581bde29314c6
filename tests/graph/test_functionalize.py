"""In-place operators become functional ones; writes through views are scattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.graph.functionalize import NotFunctional, functionalize
from tests.helpers import EXACT, Function, image, operators, ready, relative_error, run

aten = torch.ops.aten


def graph_of(build: Callable[[fx.Graph, fx.Node], fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return graph


def lines(graph: fx.Graph) -> list[str]:
    return [f"{n.target}{n.args}" for n in graph.nodes if n.op == "call_function"]


def test_later_reads_see_the_written_value() -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        early = graph.call_function(aten.neg.default, (x,))
        y = graph.call_function(aten.relu_.default, (x,))
        z = graph.call_function(aten.add.Tensor, (x, y))
        return graph.call_function(aten.mul.Tensor, (z, early))

    assert lines(functionalize(graph_of(before))) == [
        "aten.neg.default(x,)",
        "aten.relu.default(x,)",
        "aten.add.Tensor(relu__default, relu__default)",
        "aten.mul.Tensor(add_tensor, neg_default)",
    ]


def test_a_chain_of_writes_is_one_chain_of_values() -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        graph.call_function(aten.add_.Tensor, (x, 1.0))
        graph.call_function(aten.mul_.Tensor, (x, 2.0))
        return graph.call_function(aten.neg.default, (x,))

    graph = functionalize(graph_of(before))
    assert lines(graph) == [
        "aten.add.Tensor(x, 1.0)",
        "aten.mul.Tensor(add__tensor, 2.0)",
        "aten.neg.default(mul__tensor,)",
    ]


def test_a_write_to_a_view_is_scattered_where_the_whole_is_read_later() -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        view = graph.call_function(aten.slice.Tensor, (x, 1, 0, 2))
        graph.call_function(aten.relu_.default, (view,))
        return graph.call_function(aten.neg.default, (x,))

    assert lines(functionalize(graph_of(before))) == [
        "aten.slice.Tensor(x, 1, 0, 2)",
        "aten.relu.default(slice_tensor,)",
        "aten.slice_scatter.default(x, relu__default, 1, 0, 2)",
        "aten.neg.default(slice_scatter_default,)",
    ]


def test_views_of_what_was_written_are_taken_anew() -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        view = graph.call_function(aten.view.default, (x, [-1]))
        graph.call_function(aten.relu_.default, (x,))
        return graph.call_function(aten.neg.default, (view,))

    assert lines(functionalize(graph_of(before))) == [
        "aten.view.default(x, [-1])",
        "aten.relu.default(x,)",
        "aten.view.default(relu__default, [-1])",
        "aten.neg.default(view_default_1,)",
    ]


@pytest.mark.parametrize("first", [True, False])
def test_what_may_be_a_copy_is_refused(first: bool) -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        other = graph.call_function(aten.reshape.default, (x, [-1]))
        written, read = (other, x) if first else (x, other)
        graph.call_function(aten.relu_.default, (written,))
        return graph.call_function(aten.neg.default, (read,))

    with pytest.raises(NotFunctional, match="copy"):
        functionalize(graph_of(before))


def test_a_write_to_a_view_that_nothing_else_reads_is_fine() -> None:
    def before(graph: fx.Graph, x: fx.Node) -> fx.Node:
        view = graph.call_function(aten.view.default, (x, [-1]))
        return graph.call_function(aten.relu_.default, (view,))

    assert lines(functionalize(graph_of(before)))[-1] == "aten.relu.default(view_default,)"


def test_a_write_to_a_parameter_is_refused() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(aten.add_.Tensor, (graph.get_attr("weight"), 1.0)))
    with pytest.raises(NotFunctional, match="writes to weight"):
        functionalize(graph)


def _half(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)  # type: ignore[operator]
    y[:, :3] *= 2.0
    y[:, 1] = 0.25
    result: Tensor = m.b(y)  # type: ignore[operator]
    return result


def _both(m: nn.Module, x: Tensor) -> Tensor:
    y = m.a(x)  # type: ignore[operator]
    z = y.relu_()
    z += y
    result: Tensor = m.b(y.mul_(0.5) + z)  # type: ignore[operator]
    return result


@pytest.mark.parametrize("body", [_half, _both], ids=["through views", "twice"])
def test_models_that_write_in_place_are_captured_and_pruned_exactly(
    body: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    model = ready(Function(body, a=nn.Linear(4, 6), b=nn.Linear(6, 2)))
    x = image(3, 4)
    captured = fxcompress.capture(model, x)
    assert relative_error(run(captured, (x,)), run(model, (x,))) <= EXACT
    assert not [op for op in operators(captured) if op.endswith("_") and not op.endswith("__")]
    module = fxcompress.compile(model, [{"sparsity": 0.5, "op_names": ["a"]}], x, dependency_aware=False)
    assert relative_error(run(fxcompress.speedup(module), (x,)), run(module, (x,))) <= EXACT


def _views(x: Tensor) -> dict[str, Tensor]:
    rows, column = x[1:], x.select(1, 2)
    left, right = x.split([2, 4], 1)
    return {
        "x": x, "rows": rows, "column": column, "left": left, "right": right, "turned": x.transpose(0, 1),
        "inner": rows[:, ::2], "flat": rows.unsqueeze(0).view(1, -1), "piece": right.unbind(0)[1],
        "permuted": x.view(2, 2, 6).permute(2, 0, 1)[3],
    }  # fmt: skip


NAMES = list(_views(torch.zeros(4, 6)))


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_writes_and_reads_through_views_is_the_eager_one(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(NAMES), (8,), generator=random).tolist()
    kinds = torch.randint(4, (8,), generator=random).tolist()

    class Writer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            views = _views(x * 1.5)
            total = x.sum() * 0
            for pick, kind in zip(picks, kinds, strict=True):
                view = views[NAMES[pick]]
                if kind == 0:
                    view.mul_(0.5).add_(1)
                elif kind == 1:
                    view.copy_(view.flip(0) + 1)
                elif kind == 2:
                    view[..., :1] = 0.25
                else:
                    total = total + (view * torch.arange(view.numel()).view(view.shape)).sum()
            return total + sum((v * (i + 1)).sin().sum() for i, v in enumerate(views.values()))

    x = torch.randn(4, 6, dtype=torch.float64, generator=random)
    model = Writer()
    captured = fxcompress.capture(model, x)
    assert relative_error(run(captured, (x,)), run(model, (x,))) <= EXACT
    assert not [op for op in operators(captured) if op.endswith("_") and not op.endswith("__")]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.AlphaDropout, None])
@pytest.mark.parametrize("written", ["what was dropped", "what was given", "a part", "both"])
def test_dropout_shares_memory_with_its_input_in_eval_mode_only(
    written: str, kind: type[nn.Module] | None, training: bool
) -> None:
    """Found by random networks (seeds 4574, 6576 and 13324)."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h: Tensor = m.a(x)
        y = m.drop(h) if kind else torch.dropout(h, 0.3, m.training)
        if written in ("what was given", "both"):
            h.mul_(x + 3)
        if written == "what was dropped":
            y.mul_(x + 3)
        elif written != "what was given":
            y.t()[1:].mul_(0.7).add_(h.t()[1:])
        return h.sin() + y.cos()

    model = ready(Function(forward, a=nn.Linear(4, 4), drop=(kind or nn.Dropout)(0.3)))
    x = image(3, 4)
    captured = fxcompress.capture(model, x)
    results = []
    for module in (captured.train(training), model.train(training)):
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(module(x))
    assert relative_error(*results) <= EXACT


@pytest.mark.parametrize("training", [False, True])
def test_what_is_written_behind_a_view_that_may_be_a_copy_reaches_that_view(training: bool) -> None:
    """Found by a random network (seed 13324)."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).permute(0, 2, 3, 1).flatten(1, 2)
        early = h[:, ::2]
        y = m.drop(h)
        y -= h * 0.3
        y[:, 1:].mul_(2)
        total: Tensor = early.sin().sum(1) + y.cos().sum(1) + h.tan().sum(1)
        return total

    model = ready(Function(forward, a=nn.Conv2d(3, 4, 3), drop=nn.Dropout(0.3)))
    x = image(2, 3, 5, 5)
    captured = fxcompress.capture(model, x)
    results = []
    for module in (captured.train(training), model.train(training)):
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(module(x))
    assert relative_error(*results) <= EXACT
