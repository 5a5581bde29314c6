"""apply_masks: masks that exist already, on a fresh model, to train it under them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import PassError, SpeedupError
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import get_masks
from tests.helpers import EXACT, Masks, image, ready, relative_error, run

X = image(3, 3, 6, 6)
CONFIG = [{"sparsity": 0.5, "op_names": ["0"]}]


def net(seed: int = 1) -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    return ready(nn.Sequential(*layers), seed)


def compiled() -> tuple[CompiledModule, Masks]:
    module = fxcompress.compile(net(), CONFIG, X)
    return module, get_masks(module)


def by_hand(model: nn.Module, masks: Masks) -> nn.Module:
    """The model with masks multiplied into its parameters."""
    with torch.no_grad():
        for layer, entries in masks.items():
            for name, mask in entries.items():
                model.get_submodule(layer).get_parameter(name).mul_(mask)
    return model


@pytest.mark.parametrize("saved", [False, True])
def test_a_fresh_model_under_saved_masks_computes_trains_and_shrinks(saved: bool, tmp_path: Path) -> None:
    _, masks = compiled()
    given: Any = masks
    if saved:
        given = tmp_path / "masks.safetensors"
        fxcompress.save_masks(masks, given)
    model = net(2)
    masked = fxcompress.apply_masks(model, given, X)
    expected = run(by_hand(net(2), masks), (X,))
    assert relative_error(run(masked, (X,)), expected) <= EXACT
    assert masked.get_parameter("0.weight") is model.get_parameter("0.weight")
    small = fxcompress.speedup(masked)
    assert small.get_parameter("0.weight").shape[0] == 4
    assert relative_error(run(small, (X,)), expected) <= EXACT
    masked.train()
    masked(X).square().sum().backward()
    gradient = masked.get_parameter("0.weight").grad
    assert gradient is not None
    assert not bool(gradient[masks["0"]["weight"] == 0].any())
    assert bool(gradient[masks["0"]["weight"] == 1].any())


def test_it_loads_the_state_of_the_module_the_masks_are_of() -> None:
    module, masks = compiled()
    masked = fxcompress.apply_masks(net(2), masks, X)
    masked.load_state_dict(module.state_dict())
    assert relative_error(run(masked, (X,)), run(module, (X,))) <= EXACT


def test_masks_of_a_compiled_model_hold_besides_and_it_keeps_its_own() -> None:
    module, masks = compiled()
    kept = masks["0"]["weight"][:, 0, 0, 0].nonzero().flatten().tolist()
    more = torch.ones(8)
    more[kept[0]] = 0
    both = fxcompress.apply_masks(module, {"0": {"weight": more.view(8, 1, 1, 1), "bias": more}})
    assert both.get_buffer("0.weight_mask")[:, 0, 0, 0].nonzero().flatten().tolist() == kept[1:]
    assert torch.equal(module.get_buffer("0.weight_mask"), masks["0"]["weight"])
    assert both.example_inputs == module.example_inputs


def test_activations_are_masked_too() -> None:
    mask = torch.tensor([1.0, 0.0] * 4)
    model = net()
    masked = fxcompress.apply_masks(model, {"2": {"output": mask}}, X)
    inner: Tensor = model[:3](X) * mask.view(1, 8, 1, 1)  # type: ignore[index]
    assert relative_error(run(masked, (X,)), model.get_submodule("3")(inner)) <= EXACT


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"00": {"weight": torch.ones(8, 1, 1, 1)}}, SpeedupError, "00: the model has no such layer"),
        (
            {"0": {"weight": torch.ones(9, 1, 1, 1)}},
            SpeedupError,
            r"0\.weight: expected shape \(8, 3, 3, 3\)",
        ),
        ({"0": {"weight": torch.full((8, 1, 1, 1), 0.5)}}, SpeedupError, r"0\.weight: expected only 0 and 1"),
        ({"2": {"output": torch.ones(5)}}, PassError, r"masks\['2'\]\['output'\]: expected \[channels\]"),
        ({}, SpeedupError, "no masks were given"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fxcompress.apply_masks(net(), masks, X)
