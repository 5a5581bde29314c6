"""Lottery tickets: the shares of the rounds, what is rewound, what stays masked, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.pruning import LotteryTicketPruner, get_masks
from tests.pruning.training import SUBJECTS, check_speedup, rows, same_masks, sgd, through_file, train, zeros

pytestmark = pytest.mark.filterwarnings("ignore:fxcompress.*not pruned")


def started(
    subject: str = "convnet", seed: int = 1, algorithm: str = "level", rounds: int = 3, **options: Any
) -> tuple[LotteryTicketPruner, Any, torch.optim.Optimizer, Any, Tensor]:
    make, x = SUBJECTS[subject]
    model = make(seed)  # type: ignore[call-arg]
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    config = [{"sparsity": 0.75, "prune_iterations": rounds}]
    pruner = LotteryTicketPruner(
        model, config, optimizer, pruning_algorithm=algorithm,
        lr_scheduler=scheduler, example_inputs=x, **options,
    )  # fmt: skip
    return pruner, pruner.compress(), optimizer, scheduler, x


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items() if "mask" not in name}


def test_rounds_mask_the_same_share_of_what_is_left() -> None:
    model = nn.Linear(1000, 1)
    config = [{"sparsity": 0.875, "prune_iterations": 3}]
    pruner = LotteryTicketPruner(model, config, example_inputs=torch.randn(2, 1000))
    module = pruner.compress()
    got = []
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        got.append(zeros(module).get("", 0))
    assert got == [0, 500, 750, 875]  # 1 - 0.125^(k/3) = 0, 0.5, 0.75, 0.875
    with pytest.raises(FxcompressError, match="all 3 rounds are done"):
        pruner.prune_iteration_start()


def test_there_are_n_plus_one_rounds_and_those_still_to_come_are_given() -> None:
    pruner, *_ = started()
    assert list(pruner.get_prune_iterations()) == [0, 1, 2, 3]
    pruner.prune_iteration_start()
    assert list(pruner.get_prune_iterations()) == [1, 2, 3]


def test_a_round_prunes_by_the_trained_weights_and_rewinds_everything_in_place() -> None:
    pruner, module, optimizer, scheduler, x = started()
    held = [id(p) for p in module.parameters()]
    first = tensors(module)
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        assert [id(p) for p in module.parameters()] == held
        assert all(torch.equal(value, first[name]) for name, value in tensors(module).items())
        assert not optimizer.state, "no momentum yet"
        assert optimizer.param_groups[0]["lr"] == 0.05
        assert scheduler.last_epoch == 0
        train(module, optimizer, x, 4)
        scheduler.step()
        trained = {n: p.detach().clone() for n, p in module.named_parameters()}
        assert optimizer.param_groups[0]["lr"] == 0.025
        assert not torch.equal(trained["0.weight"], first["0.weight"])
        assert not torch.equal(module.state_dict()["1.running_mean"], first["1.running_mean"])
    assert zeros(module) == {"0": 162, "3": 324, "7": 90}  # 0.75 of 216, 432, 120


def test_the_first_masks_are_those_of_the_smallest_trained_weights() -> None:
    pruner, module, optimizer, _, x = started(rounds=1)
    pruner.prune_iteration_start()
    train(module, optimizer, x, 10)
    trained = module.get_parameter("7.weight").detach().abs().flatten()
    expected = torch.ones(120, dtype=torch.float64)
    expected[trained.argsort(stable=True)[:90]] = 0
    pruner.prune_iteration_start()
    assert torch.equal(get_masks(module)["7"]["weight"].flatten(), expected)


@pytest.mark.parametrize("algorithm", ["level", "l1", "fpgm", "random"])
def test_what_is_masked_stays_masked(algorithm: str) -> None:
    pruner, module, optimizer, _, x = started(algorithm=algorithm)
    before: dict[str, dict[str, Tensor]] = {}
    for index in pruner.get_prune_iterations():
        torch.manual_seed(index)  # other random scores every round
        pruner.prune_iteration_start()
        now = get_masks(module)
        for layer, masks in before.items():
            for key, mask in masks.items():
                assert bool((now[layer][key] <= mask).all()), (index, layer, key)
        before = now
        train(module, optimizer, x)
    if algorithm == "level":
        assert zeros(module)["0"] == 162
    else:
        assert rows(module)["0"] == 6


def test_without_reset_weights_training_goes_on() -> None:
    pruner, module, optimizer, _, x = started(reset_weights=False, rounds=1)
    pruner.prune_iteration_start()
    train(module, optimizer, x)
    before = tensors(module)
    pruner.prune_iteration_start()
    assert all(torch.equal(value, before[name]) for name, value in tensors(module).items())
    assert optimizer.state
    assert zeros(module)["7"] == 90


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("algorithm", ["level", "l1"])
def test_the_ticket_makes_an_exact_small_model(algorithm: str, subject: str) -> None:
    pruner, module, optimizer, _, x = started(subject, algorithm=algorithm, rounds=2)
    for _ in pruner.get_prune_iterations():
        pruner.prune_iteration_start()
        train(module, optimizer, x)
    small = check_speedup(module, x)
    if algorithm == "l1":
        layer, width = {"convnet": ("0", 2), "transformer": ("up", 4)}[subject]
        assert small.get_submodule(layer).get_parameter("weight").shape[0] == width


def test_a_run_resumed_from_a_checkpoint_goes_on_with_the_same_rounds() -> None:
    def rounds(run: Any, last: int) -> None:
        pruner, module, optimizer, scheduler, x = run
        for index in pruner.get_prune_iterations():
            pruner.prune_iteration_start()
            train(module, optimizer, x)
            scheduler.step()
            if index == last:
                return

    whole, first, second = started(), started(), started(seed=2)
    rounds(whole, 3)
    rounds(first, 1)
    for part, saved in zip(second[:4], through_file([part.state_dict() for part in first[:4]]), strict=True):
        part.load_state_dict(saved)
    assert list(second[0].get_prune_iterations()) == [2, 3]
    rounds(second, 3)
    assert same_masks(whole[1], second[1])
    for one, other in zip(whole[1].parameters(), second[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_all_entries_give_the_same_number_of_rounds() -> None:
    model = SUBJECTS["convnet"][0]()
    config = [{"sparsity": 0.5, "prune_iterations": 2}, {"op_names": ["7"], "prune_iterations": 3}]
    with pytest.raises(ConfigError, match=r"expected one number for all layers, got 2 for '0'.* 3 for '7'"):
        LotteryTicketPruner(model, config)
