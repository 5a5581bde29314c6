"""Scores, counts and ties of the pruning algorithms, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.pruning import get_masks
from fxcompress.pruning.allocation import choose_global, normalized
from fxcompress.pruning.layers import keep_lowest_out

FILTERS = torch.tensor([[1.0, -2.0], [3.0, 0.0], [-2.0, 2.0], [0.0, 4.0]])


def linear(rows: list[list[float]]) -> nn.Module:
    """A model whose first layer has the given weight; its outputs feed a second layer."""
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows)), nn.ReLU(), nn.Linear(len(rows), 2))
    with torch.no_grad():
        model.get_submodule("0").get_parameter("weight").copy_(torch.tensor(rows))
    return model


def mask_of(model: nn.Module, x: Tensor, **entry: object) -> Tensor:
    module = fxcompress.compile(model, [{"op_names": ["0"], **entry}], x)
    masks = get_masks(module)
    return (
        masks["0"]["weight"] if masks else torch.ones_like(model.get_submodule("0").get_parameter("weight"))
    )


SPREAD = [[5 / 3, 5 / 3, 5 / 3], [0.0, 3.0, 0.0], [0.0, 4.5, 0.0], [0.0, 0.0, -6.0]]
CROWDED = [[5.0, 0.0], [5.1, 0.0], [5.3, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("pruner", "rows", "gone"),
    [
        ("l1", SPREAD, [1, 2]),  # 5, 3, 4.5, 6
        ("l2", SPREAD, [0, 1]),  # 2.89, 3, 4.5, 6
        ("l1", CROWDED, [0, 3]),  # 5, 5.1, 5.3, 1
        ("fpgm", CROWDED, [0, 1]),  # 0.1 + 0.3 + 4, 0.1 + 0.2 + 4.1, 0.3 + 0.2 + 4.3, 4 + 4.1 + 4.3
    ],
)
def test_algorithms_disagree_where_their_formulas_do(
    pruner: str, rows: list[list[float]], gone: list[int]
) -> None:
    mask = mask_of(linear(rows), torch.randn(2, len(rows[0])), sparsity=0.5, pruner=pruner)
    assert (mask == 0).all(1).nonzero().flatten().tolist() == gone


@pytest.mark.parametrize("pruner", ["l1", "l2", "fpgm"])
@pytest.mark.parametrize(
    ("sparsity", "count"), [(0.1, 0), (0.2, 1), (0.5, 2), (0.79, 3), (0.8, 4), (0.99, 4)]
)
def test_floor_of_s_times_n_filters_go(pruner: str, sparsity: float, count: int) -> None:
    mask = mask_of(
        nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), torch.randn(2, 3), sparsity=sparsity, pruner=pruner
    )
    rows = (mask == 0).all(1)
    assert int(rows.sum()) == count
    assert bool(((mask == 0).any(1) == rows).all())


def test_level_masks_the_smallest_magnitudes() -> None:
    model = linear([[0.5, -0.1, 2.0], [0.3, -4.0, 0.2]])
    mask = mask_of(model, torch.randn(2, 3), sparsity=0.5, pruner="level")
    assert mask.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert "bias" not in get_masks(fxcompress.compile(model, [{"sparsity": 0.5, "pruner": "level"}]))["0"]


@pytest.mark.parametrize(("sparsity", "count"), [(0.1, 1), (0.34, 5), (0.5, 7), (0.999, 14)])
def test_level_masks_floor_of_s_times_n_weights(sparsity: float, count: int) -> None:
    mask = mask_of(linear([[0.0] * 3] * 5), torch.randn(2, 3), sparsity=sparsity, pruner="level")
    assert int((mask == 0).sum()) == count
    assert mask.flatten()[:count].eq(0).all(), "of equal weights the first go"


@pytest.mark.parametrize("pruner", ["l1", "l2", "fpgm"])
def test_of_equal_filters_the_lower_index_goes_first(pruner: str) -> None:
    mask = mask_of(linear([[1.0, -1.0]] * 6), torch.randn(2, 2), sparsity=0.5, pruner=pruner)
    assert mask[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_keep_lowest_out_is_stable() -> None:
    assert keep_lowest_out(torch.tensor([2.0, 1.0, 1.0, 1.0]), 2).tolist() == [True, False, False, True]
    assert keep_lowest_out(torch.tensor([2.0, 1.0]), 0).all()


def test_normalized_scores_have_mean_one() -> None:
    torch.testing.assert_close(normalized(torch.tensor([1.0, 3.0])), torch.tensor([0.5, 1.5]), rtol=0, atol=0)
    assert normalized(torch.zeros(2)).tolist() == [0, 0]


def test_global_choice_keeps_within_the_budget_and_the_limit() -> None:
    scores = [torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.15, 0.9])]
    kept = choose_global(scores, [10, 10], 0.5, None)  # a budget of 30 of 60 weights: three filters
    assert [k.tolist() for k in kept] == [[False, False, True, True], [False, True]]
    kept = choose_global(scores, [10, 10], 0.5, 0.25)  # at most one of four, none of two
    assert [k.tolist() for k in kept] == [[False, True, True, True], [True, True]]
    kept = choose_global([torch.tensor([0.1, 0.2])], [5], 1.0, None)
    assert kept[0].tolist() == [False, True], "no layer loses its last filter"
