"""Axis analysis: which dimensions are one axis, how axes depend on each other, what stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.calls import Reference
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.axes import analyze_axes
from fxcompress.rules.axes import Axis, Link, Obstacle, Product
from fxcompress.rules.flow import Flow
from tests.helpers import Function, image


def flow_of(model: nn.Module, x: Tensor, *, restrict: bool = False) -> tuple[CompiledModule, Flow]:
    module = fxcompress.capture(model.double().eval(), x)
    return module, analyze_axes(module, restrict=restrict)


def axis(flow: Flow, name: str, dim: int) -> Axis:
    return flow.axes(Reference(name))[dim].find()


def test_merging_axes_joins_what_is_known_about_them() -> None:
    a, b, c = Axis(4), Axis(4), Axis(4)
    b.frozen = Obstacle("node", "reason")
    a.merge(b)
    b.merge(c)
    assert a.find() is c.find()
    assert c.find().frozen == Obstacle("node", "reason")
    with pytest.raises(ValueError, match="sizes 4 and 5"):
        a.merge(Axis(5))


def test_channels_are_one_axis_from_the_layer_that_makes_them_to_those_that_read_them() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    _, flow = flow_of(model, image(2, 3, 5, 5))
    channels = axis(flow, "0.weight", 0)
    same = [("0.bias", 0), ("1.weight", 0), ("1.running_var", 0), ("3.weight", 1)]
    assert all(axis(flow, name, dim) is channels for name, dim in same)
    assert channels.frozen is None
    assert axis(flow, "3.weight", 0).frozen == Obstacle("_3", "model output")
    assert axis(flow, "0.weight", 1).frozen == Obstacle("input_1", "model input")


def test_an_addition_unifies_and_a_concatenation_links() -> None:
    model = Function(
        lambda m, x: m.head(torch.cat([m.a(x) + m.b(x), m.c(x)], 1)),
        a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(3, 2), head=nn.Linear(6, 2),
    )  # fmt: skip
    _, flow = flow_of(model, image(2, 3))
    assert axis(flow, "a.weight", 0) is axis(flow, "b.weight", 0)
    links = [r for r in flow.map.relations if isinstance(r, Link)]
    assert [(r.ia.tolist(), r.ib.tolist()) for r in links] == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5], [0, 1])]
    assert links[1].b.find() is axis(flow, "c.weight", 0)
    assert links[0].a.find() is axis(flow, "head.weight", 1)


def test_a_grouped_convolution_makes_products() -> None:
    _, flow = flow_of(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1)), image(2, 3, 4, 4)
    )
    products = [r for r in flow.map.relations if isinstance(r, Product)]
    assert sorted([r.whole.size, *(f.size for f in r.factors)] for r in products) == [[4, 2, 2], [6, 2, 3]]
    assert products[0].factors[0].find() is products[1].factors[0].find(), "the groups are one axis"


def test_the_batch_is_frozen_and_flagged() -> None:
    module, flow = flow_of(nn.Sequential(nn.Linear(3, 2)), image(4, 3))
    batch = flow.map.of[next(iter(module.graph.nodes))][0].find()
    assert batch.dynamic
    assert batch.frozen is not None


def test_a_norm_over_channels_freezes_them_unless_it_may_be_restricted() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    frozen = axis(flow_of(model, image(4, 3))[1], "0.weight", 0).frozen
    assert frozen is not None
    assert "LayerNorm statistics" in frozen.reason
    _, flow = flow_of(model, image(4, 3), restrict=True)
    assert axis(flow, "0.weight", 0).frozen is None
    assert list(flow.map.restricted.values()) == [(1,)]


def test_an_operator_without_a_rule_freezes_what_is_around_it() -> None:
    model = Function(lambda m, x: m.b(torch.linalg.matrix_exp(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    _, flow = flow_of(model, image(2, 4, 3))
    assert list(flow.map.unruled) == ["linalg_matrix_exp"]
    frozen = axis(flow, "a.weight", 0).frozen
    assert frozen is not None
    assert "no rule for operator 'linalg_matrix_exp'" in frozen.reason


def test_a_rule_that_does_not_cover_a_call_freezes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxcompress.rules.pointwise import Pointwise

    def fails(*_: object) -> None:
        raise ValueError("odd call")

    monkeypatch.setattr(Pointwise, "flow", fails)
    _, flow = flow_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), image(2, 3))
    frozen = axis(flow, "0.weight", 0).frozen
    assert frozen is not None
    assert "does not cover this call (odd call)" in frozen.reason


def test_tied_weights_have_one_set_of_axes_and_count_their_readers() -> None:
    shared = nn.Linear(4, 4)
    _, flow = flow_of(nn.Sequential(shared, nn.ReLU(), shared), image(2, 4))
    assert axis(flow, "0.weight", 0) is axis(flow, "0.weight", 1)
    assert flow.map.uses["0.weight"] == 2
