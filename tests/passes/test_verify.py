"""verify and check_graph: what they let through and what they say otherwise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import PassError, SpeedupError
from fxcompress.graph.calls import TensorInfo
from fxcompress.passes.verify import TOLERANCE, check_graph, graph_lines, tolerance, verify
from tests.helpers import image, ready


def captured() -> fxcompress.CompiledModule:
    model = ready(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    return fxcompress.capture(model, image(3, 4))


def test_equal_models_differ_by_nothing() -> None:
    module = captured()
    assert verify(module, module.fork(), module.example_inputs) == 0.0


@pytest.mark.parametrize(("change", "raises"), [(1e-12, False), (1e-7, True)])
def test_a_difference_beyond_the_tolerance_raises(change: float, raises: bool) -> None:
    module = captured()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_parameter("2.bias").add_(change)
    if raises:
        with pytest.raises(SpeedupError, match=r"differs from the masked one by .*allowed 1e-09"):
            verify(module, other, module.example_inputs)
        assert 0 < verify(module, other, module.example_inputs, tolerance=1e-3) < 1e-3
    else:
        assert 0 < verify(module, other, module.example_inputs) < TOLERANCE


def test_modules_stay_as_they_are() -> None:
    x = image(3, 4).float()
    module = fxcompress.capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), x).train()
    verify(module, module.fork(), ((x,), {}))
    check_graph(module, module.example_inputs)
    assert module.training
    assert next(module.parameters()).dtype == torch.float32


def test_the_tolerance_of_folded_parameters_is_that_of_their_dtype() -> None:
    assert tolerance(captured()) == TOLERANCE
    assert tolerance(captured().float()) == pytest.approx(100 * 2**-23, rel=1e-6)


def test_a_wrong_shape_is_shown_with_the_lines_around_it() -> None:
    module = captured()
    check_graph(module, module.example_inputs)
    node = module.graph.find_nodes(op="call_module")[1]
    node.meta["tensor"] = TensorInfo((251, 5), torch.float64, (True, False))
    with pytest.raises(PassError, match=r"(?s)after shrink → fold: _1 yields .*expected \(251, 5\).*-> .*_1"):
        check_graph(module, module.example_inputs, ("shrink", "fold"))


def test_a_graph_that_does_not_run_names_the_node() -> None:
    module = captured()
    module.get_submodule("2").weight = nn.Parameter(torch.ones(2, 5).double())
    with pytest.raises(PassError, match=r"(?s)_2 does not run: .*-> "):
        check_graph(module, module.example_inputs)
    assert graph_lines(module.graph.find_nodes(op="call_module")[0]).count("-> ") == 1
