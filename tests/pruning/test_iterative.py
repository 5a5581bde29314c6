"""Physical pruning in rounds: widths, the optimizer's state, exactness, going on from files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.pruning import IterativePruner
from fxcompress.pruning.carry import carry_optimizer
from tests.helpers import check_exact, ready
from tests.pruning.training import SUBJECTS, sgd, through_file, train

pytestmark = pytest.mark.filterwarnings("ignore:fxcompress.*not pruned")
CONFIG = [{"sparsity": 0.7, "end_epoch": 6, "frequency": 2}]


def widths(module: nn.Module) -> dict[str, int]:
    named = module.named_parameters()
    return {name.removesuffix(".weight"): len(p) for name, p in named if name.endswith(".weight")}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_round_reaches_its_share_of_the_original_widths(subject: str) -> None:
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    pruner = IterativePruner(model, CONFIG, optimizer, example_inputs=x)
    module = pruner.compress()
    got = []
    for epoch in range(8):
        module = pruner.advance(epoch)
        got.append(widths(module))
        train(module, optimizer, x)
    expected = {  # of n channels floor(s n) go, s = 0, 0.7/3, 1.4/3, 0.7
        "convnet": {"0": (8, 7, 5, 3), "3": (6, 5, 4, 2), "7": (5, 5, 5, 5)},
        # of the 4 dimensions that each of two heads has 0, 1, 2; the residual stream stays
        "transformer": {"up": (16, 13, 9, 5), "v": (8, 8, 6, 4), "q": (8, 8, 6, 4), "out": (8, 8, 8, 8)},
    }[subject]
    for layer, at_round in expected.items():
        assert tuple(w[layer] for w in got[::2]) == at_round, layer
    assert got[1::2] == got[::2]
    once = fxcompress.speedup(fxcompress.compile(make(), [{"sparsity": 0.7}], x))
    assert widths(module) == widths(once), "as pruned at once"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_round_is_exact(subject: str) -> None:
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    pruner = IterativePruner(model, CONFIG, optimizer, example_inputs=x, verify=False)
    module = pruner.compress()
    for epoch in range(7):
        masked = module  # a round masks it before it makes a smaller one
        module = pruner.advance(epoch)
        check_exact(module, masked.eval(), x)
        assert (module is masked) == (epoch not in (2, 4, 6))
        train(module, optimizer, x)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_optimizers_state_is_sliced_like_the_parameters(kind: str) -> None:
    make, x = SUBJECTS["convnet"]
    model = make()
    first_layer = list(model.get_submodule("0").parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("0.")]
    groups: list[dict[str, Any]] = [{"params": first_layer, "lr": 0.02}, {"params": others, "lr": 0.01}]
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(groups, momentum=0.9) if kind == "sgd" else torch.optim.Adam(groups)
    )
    config = [{"sparsity": 0.5, "end_epoch": 1, "op_names": ["0"]}]
    pruner = IterativePruner(model, config, optimizer, example_inputs=x)
    module = pruner.compress()
    pruner.update_epoch(0)
    train(module, optimizer, x, 3)
    old = {name: (p.detach().clone(), dict(optimizer.state[p])) for name, p in module.named_parameters()}
    kept = old["0.weight"][0].abs().sum((1, 2, 3)).argsort(stable=True)[4:].sort().values
    module = pruner.advance(1)
    new = dict(module.named_parameters())
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 6]
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.01]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in new.values())
    assert {id(p) for p in optimizer.state} == set(held)
    keys = ["momentum_buffer"] if kind == "sgd" else ["exp_avg", "exp_avg_sq"]
    for name, dim in [("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)]:
        assert torch.equal(new[name], old[name][0].index_select(dim, kept)), name
        for key in keys:
            state = optimizer.state[new[name]][key]
            assert torch.equal(state, old[name][1][key].index_select(dim, kept)), (name, key)
    if kind == "adam":
        assert float(optimizer.state[new["0.weight"]]["step"]) == 3
    for key in keys:
        assert torch.equal(optimizer.state[new["7.weight"]][key], old["7.weight"][1][key])
    train(module, optimizer, x, 2)
    assert not torch.equal(new["0.weight"], old["0.weight"][0][kept])


def test_training_goes_on_as_under_masks() -> None:
    """A masked model and the small one take the same steps, momentum included."""
    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)))
    x = torch.randn(5, 4, dtype=torch.float64)
    optimizer = sgd(model)
    config = [{"sparsity": 0.5, "end_epoch": 1, "op_names": ["0"]}]
    pruner = IterativePruner(model, config, optimizer, example_inputs=x)
    module = pruner.compress()
    train(module, optimizer, x, 3)
    other, twin = copy.deepcopy((module, optimizer))
    masked = fxcompress.compile(other, [{"sparsity": 0.5, "op_names": ["0"]}], x)
    module = pruner.advance(1)
    check_exact(module, masked, x)
    weight = other.get_parameter("0.weight")
    kept = (masked.state_dict()["0.weight_mask"] != 0).any(1)
    for parameter in (weight, other.get_parameter("0.bias")):  # momentum of masked entries is gone
        twin.state[parameter]["momentum_buffer"][~kept] = 0
    train(module, optimizer, x, 3)
    train(masked, twin, x, 3)
    check_exact(module, masked, x)


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_origin_says_which_slices_every_parameter_consists_of(subject: str, sparsity: float) -> None:
    make, x = SUBJECTS[subject]
    masked = fxcompress.compile(make(), [{"sparsity": sparsity}], x)
    small = fxcompress.speedup(masked)
    state = masked.state_dict()
    assert set(small.origin) == {name for name, _ in small.named_parameters()}
    for name, parameter in small.named_parameters():
        value = state[name] * state.get(f"{name}_mask", 1)
        for dim, index in enumerate(small.origin[name]):
            value = value if index is None else value.index_select(dim, index)
        assert value.shape == parameter.shape
        if name.endswith("weight"):  # biases take up constants
            assert torch.equal(value, parameter), name
    assert any(index is not None for slices in small.origin.values() for index in slices)
    again = fxcompress.speedup(small)
    assert all(index is None for slices in again.origin.values() for index in slices)
    assert small.fork().origin == masked.origin == {}


def test_a_bias_made_by_a_round_is_trained_and_foreign_parameters_stay() -> None:
    torch.manual_seed(0)
    model = ready(nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False)))
    x = torch.randn(5, 4, dtype=torch.float64)
    foreign = nn.Parameter(torch.zeros(3))
    first_layer, last_layer = (list(model.get_submodule(name).parameters()) for name in ("0", "2"))
    groups: list[dict[str, Any]] = [{"params": [*first_layer, foreign]}, {"params": last_layer, "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    mask = torch.ones(6, 4, dtype=torch.float64)
    mask[:3] = 0
    masked = fxcompress.capture(model, x)
    small = fxcompress.speedup(masked, masks={"0": {"weight": mask}})
    assert "2.bias" in dict(small.named_parameters())
    carry_optimizer(optimizer, masked, small)
    first, second = optimizer.param_groups
    trained = [*small.get_submodule("0").parameters(), foreign]
    assert [id(p) for p in first["params"]] == [id(p) for p in trained]
    assert [id(p) for p in second["params"]] == [id(p) for p in small.get_submodule("2").parameters()]
    assert second["lr"] == 0.5


def test_a_run_goes_on_from_files(tmp_path: Path) -> None:
    make, x = SUBJECTS["convnet"]

    def begun(model: nn.Module) -> tuple[IterativePruner, Any, torch.optim.Optimizer]:
        optimizer = sgd(model)
        pruner = IterativePruner(model, CONFIG, optimizer, example_inputs=x)
        return pruner, pruner.compress(), optimizer

    def epochs(run: tuple[IterativePruner, Any, torch.optim.Optimizer], which: range) -> Any:
        module = run[1]
        for epoch in which:
            module = run[0].advance(epoch)
            train(module, run[2], x)
        return module

    whole, first = begun(make()), begun(make())
    expected, module = epochs(whole, range(8)), epochs(first, range(4))
    fxcompress.save(module, tmp_path / "module.pt2")
    state = through_file({"pruner": first[0].state_dict(), "optimizer": first[2].state_dict()})
    second = begun(fxcompress.load(tmp_path / "module.pt2"))
    second[0].load_state_dict(state["pruner"])
    second[2].load_state_dict(state["optimizer"])
    got = epochs(second, range(4, 8))
    assert widths(got) == widths(expected)
    for one, other in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_layers_chosen_alone_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dependency_aware: expected True, got False"):
        IterativePruner(SUBJECTS["convnet"][0](), CONFIG, dependency_aware=False)
