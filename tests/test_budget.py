"""fit_budget: the small model costs what was asked, no less than needed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.budget import fit_budget
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.cost import count_macs, count_parameters
from tests.helpers import image, ready

X = image(2, 3, 8, 8)
CONFIG = [{"sparsity": 0.2, "op_names": ["0"]}, {"sparsity": 0.4, "op_names": ["3"]}]


def net() -> nn.Module:
    return ready(
        nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4),
        )
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_the_budget_is_met_closely_and_proportions_stay(kind: str) -> None:
    model = net()
    found = fit_budget(model, CONFIG, X, **{kind: 0.4})  # type: ignore[arg-type]
    assert found[1]["sparsity"] == pytest.approx(2 * found[0]["sparsity"])
    small = fxcompress.speedup(fxcompress.compile(model, found, X))
    if kind == "macs":
        left = count_macs(small, X).total / count_macs(model, X).total
    else:
        left = count_parameters(small) / count_parameters(model)
    assert 0.37 < left <= 0.4


def test_a_latency_budget_prunes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 96, 3), nn.ReLU(), nn.Conv2d(96, 96, 3), nn.ReLU(), nn.Conv2d(96, 4, 1)
    )
    found = fit_budget(
        model, [{"sparsity": 0.5, "op_names": ["0", "2"]}], torch.randn(1, 3, 48, 48), latency=0.8
    )
    assert 0 < found[0]["sparsity"] < 0.98


def test_what_cannot_be_met_says_how_far_it_goes() -> None:
    with pytest.raises(FxcompressError, match=r"parameters=0\.01: .* sparsity of 0\.98 .*% are left; select"):
        fit_budget(net(), [{"sparsity": 0.5, "op_names": ["0"]}], X, parameters=0.01)


@pytest.mark.parametrize(
    ("budgets", "config", "words"),
    [
        ({}, CONFIG, "expected one of macs, parameters and latency"),
        ({"macs": 0.5, "latency": 0.5}, CONFIG, "expected one of macs"),
        ({"macs": 50}, CONFIG, r"a number in \(0, 1\)"),
        ({"macs": 0.5}, [{"exclude": True, "op_names": ["0"]}], "expected an entry with a sparsity"),
    ],
)
def test_wrong_budgets(budgets: dict[str, float], config: list[dict[str, object]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fit_budget(net(), config, X, **budgets)  # type: ignore[arg-type]
