"""The classes of the seeds' API: the same masks as ``compile``, step by step, and files at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.pruning import (
    PRUNERS,
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    LevelPruner,
    Pruner,
    ScoringPruner,
    get_masks,
)

CONFIG = [{"sparsity": 0.5, "op_types": ["Conv2d"]}, {"exclude": True, "op_names": ["2"]}]
X = torch.randn(2, 3, 6, 6)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))


@pytest.mark.parametrize("cls", [L1FilterPruner, L2FilterPruner, FPGMPruner, LevelPruner])
def test_a_pruner_gives_the_masks_compile_gives(cls: type[Pruner]) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    module = cls(model, CONFIG, optimizer, example_inputs=X).compress()
    named = [{**CONFIG[0], "pruner": cls.name}, CONFIG[1]]
    expected = get_masks(fxcompress.compile(model, named, X))
    masks = get_masks(module)
    assert masks.keys() == expected.keys() == {"0"}
    for parameter, mask in masks["0"].items():
        assert torch.equal(mask, expected["0"][parameter])


def test_algorithms_are_final_and_scores_are_needed() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ScoringPruner(net(), CONFIG)  # type: ignore[abstract]
    assert all(getattr(cls, "__final__", False) for cls in PRUNERS.values())


def test_a_wrong_config_is_refused_before_anything_is_traced() -> None:
    model = net()
    model.forward = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"1\.5"):
        L1FilterPruner(model, [{"sparsity": 1.5, "op_types": ["Conv2d"]}])


def test_export_before_compress_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FxcompressError, match=r"call compress\(\) first"):
        L1FilterPruner(net(), CONFIG).export_model(tmp_path / "weights.pt")


def test_export_writes_masked_weights_and_masks(tmp_path: Path) -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    module = pruner.compress()
    pruner.update_epoch(0)
    pruner.step()
    pruner.export_model(tmp_path / "weights.pt", tmp_path / "masks.safetensors")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert set(state) == set(net().state_dict())
    masks = fxcompress.load_masks(tmp_path / "masks.safetensors")
    assert torch.equal(state["0.weight"] != 0, masks["0"]["weight"] != 0)
    twin = net()
    twin.load_state_dict(state)
    small = fxcompress.speedup(twin, X, masks=masks)
    assert small.get_submodule("0").get_parameter("weight").shape[0] == 4
    torch.testing.assert_close(small.eval()(X), module.eval()(X), rtol=1e-5, atol=1e-6)


def test_the_optimizer_given_to_the_pruner_trains_the_masked_model() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    module = L1FilterPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    mask = get_masks(module)["0"]["weight"]
    before = model.get_submodule("0").get_parameter("weight").detach().clone()
    module(X).square().mean().backward()
    optimizer.step()
    moved = module.get_submodule("0").get_parameter("weight").detach() != before
    assert bool(moved.any())
    assert not bool((moved & (mask == 0)).any()), "masked weights get no gradient"
