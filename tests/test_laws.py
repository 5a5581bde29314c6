"""The laws of design.md on random networks; see `tests/laws.py` for what each one says.

A failure's message is a Python file that can be pasted and run. `benchmarks/fuzz.py` runs the same laws over
thousands of networks.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from torch import nn

from tests import laws
from tests.comparing import amplification, relative_error, require_close
from tests.generator import KINDS, Network, Pruning, cases
from tests.generator.test_generator import sample_with

FEW = settings(
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@settings(FEW, max_examples=40)
@given(cases())
def test_every_law_holds_for_random_networks_and_prunings(case: tuple[Network, Pruning]) -> None:
    try:
        laws.check(laws.Subject(*case))
    except laws.Unsuited:
        reject()


@pytest.mark.parametrize("kind", KINDS)
def test_every_operator_kind_is_captured(kind: str) -> None:
    laws.check(laws.Subject(sample_with(kind), Pruning([], {}, True)), laws.WITHOUT_PRUNING)


# -- the laws notice what they are there for -------------------------------------------------------------


def test_a_wrong_output_is_noticed() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"demo: relative error 1.00e-08, allowed 1e-09"):
        require_close("demo", x * (1 + 1e-8), x, laws.EXACT)
    require_close("demo", x * (1 + 1e-10), x, laws.EXACT)


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(2, 3), [torch.ones(2, 3, dtype=torch.float64)]])
def test_a_wrong_shape_dtype_or_structure_is_noticed(wrong: object) -> None:
    with pytest.raises(AssertionError, match="output"):
        relative_error(wrong, torch.ones(2, 3, dtype=torch.float64))


def test_not_a_number_is_an_infinite_error() -> None:
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_a_transposed_convolution_lie_along_its_output_channels(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    mask, bias = torch.ones_like(layer.weight), torch.ones(6)
    mask[:2, 1] = 0  # output channel 1 reads the inputs of its group: 0 and 1 of 2 groups, all of 1 group
    mask[2 if groups == 1 else 0 : 4 if groups == 1 else 2, 1] = 0
    bias[1] = 0
    gone = laws.masked_filters(layer, {"weight": mask, "bias": bias})
    assert gone.tolist() == [False, True, False, False, False, False]
    assert not laws.masked_filters(layer, {"weight": mask}).any()


def test_a_comparison_at_a_tie_is_ill_conditioned() -> None:
    class Tie(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x > 1.0).to(x.dtype)

    assert amplification(Tie(), (torch.full((100,), 1.0, dtype=torch.float64),)) > laws.AMPLIFICATION
    assert amplification(nn.Linear(3, 3).double(), (torch.randn(2, 3).double(),)) < laws.AMPLIFICATION
