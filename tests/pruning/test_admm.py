"""ADMM: Z, U and the regularizer by hand, when they move, final masks, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ConfigError
from fxcompress.pruning import ADMMPruner, get_masks
from tests.pruning.training import SUBJECTS, check_speedup, rows, same_masks, sgd, through_file, train, zeros

pytestmark = pytest.mark.filterwarnings("ignore:fxcompress.*not pruned")


def by_hand(**options: Any) -> tuple[ADMMPruner, nn.Module]:
    model = nn.Linear(2, 2)
    pruner = ADMMPruner(
        model, [{"sparsity": 0.5}], example_inputs=torch.randn(3, 2), rho=0.5,
        **{"num_iterations": 2, "epochs_per_iteration": 3, **options},
    )  # fmt: skip
    weigh(model, [[4.0, 1.0], [2.0, -3.0]])
    return pruner, pruner.compress()


def weigh(module: nn.Module, rows: list[list[float]]) -> None:
    with torch.no_grad():
        module.get_parameter("weight").copy_(torch.tensor(rows))


def test_targets_duals_and_the_regularizer_by_hand() -> None:
    pruner, module = by_hand()
    weight = module.get_parameter("weight")
    assert pruner.targets[""].tolist() == [[4, 0], [0, -3]]
    assert pruner.duals[""].tolist() == [[0, 0], [0, 0]]
    loss = pruner.regularizer()  # 0.25 · (1 + 4)
    assert loss.item() == 1.25
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0, 0.5], [1, 0]]  # ρ (W − Z + U)
    for epoch in range(3):
        pruner.update_epoch(epoch)
        assert pruner.iteration == 0
    pruner.update_epoch(3)
    assert pruner.targets[""].tolist() == [[4, 0], [0, -3]]
    assert pruner.duals[""].tolist() == [[0, 1], [2, 0]]
    assert pruner.regularizer().item() == 0.25 * (4 + 16)  # W − Z + U = [[0, 2], [4, 0]]
    weigh(module, [[1.0, 1.0], [2.0, -3.0]])
    pruner.update_epoch(5)
    assert pruner.iteration == 1
    pruner.update_epoch(6)  # W + U = [[1, 2], [4, -3]]
    assert pruner.targets[""].tolist() == [[0, 0], [4, -3]]
    assert pruner.duals[""].tolist() == [[1, 2], [0, 0]]
    assert get_masks(module)[""]["weight"].tolist() == [[0, 0], [1, 1]], "chosen by W"
    assert weight.tolist() == [[1, 1], [2, -3]]
    assert pruner.regularizer().item() == 0


def test_nothing_is_masked_before_the_end_and_skipped_epochs_make_one_update() -> None:
    pruner, module = by_hand(num_iterations=4, epochs_per_iteration=1)
    pruner.update_epoch(3)
    assert pruner.iteration == 3
    assert pruner.duals[""].tolist() == [[0, 1], [2, 0]]
    assert get_masks(module) == {}
    pruner.update_epoch(3)
    assert pruner.duals[""].tolist() == [[0, 1], [2, 0]]
    pruner.update_epoch(9)
    assert zeros(module) == {"": 2}


def test_the_pull_leads_to_the_target_less_the_dual() -> None:
    """A gradient step of rate 1/ρ on ``ρ/2 ‖W − Z + U‖²`` alone lands on its minimum ``Z − U``."""
    pruner, module = by_hand()
    optimizer = torch.optim.SGD(module.parameters(), lr=1 / pruner.rho)
    pruner.update_epoch(3)
    pruner.regularizer().backward()
    optimizer.step()
    weight = module.get_parameter("weight")
    assert weight.tolist() == [[4, -1], [-2, -3]]  # [[4, 0], [0, -3]] − [[0, 1], [2, 0]]
    assert pruner.regularizer().item() == 0


@pytest.mark.parametrize("algorithm", ["level", "l1"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_training_ends_in_an_exact_small_model(subject: str, algorithm: str) -> None:
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    pruner = ADMMPruner(
        model, [{"sparsity": 0.5}], optimizer, pruning_algorithm=algorithm, example_inputs=x,
        num_iterations=2, epochs_per_iteration=1,
    )  # fmt: skip
    module = pruner.compress()
    for epoch in range(4):
        pruner.update_epoch(epoch)
        train(module, optimizer, x, 2, pruner.regularizer)
    small = check_speedup(module, x)
    if algorithm == "l1":
        layer, width = {"convnet": ("0", 8), "transformer": ("up", 16)}[subject]
        assert rows(module)[layer] == width // 2
        assert small.get_submodule(layer).get_parameter("weight").shape[0] == width // 2


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_run_resumed_from_a_checkpoint_has_the_masks_of_an_uninterrupted_one(stop: int) -> None:
    make, x = SUBJECTS["convnet"]

    def start(seed: int) -> tuple[ADMMPruner, Any, torch.optim.Optimizer]:
        model = make(seed)  # type: ignore[call-arg]
        optimizer = sgd(model)
        pruner = ADMMPruner(
            model, [{"sparsity": 0.5}], optimizer, pruning_algorithm="l1", example_inputs=x,
            num_iterations=2, epochs_per_iteration=2,
        )  # fmt: skip
        return pruner, pruner.compress(), optimizer

    def epochs(run: tuple[ADMMPruner, Any, torch.optim.Optimizer], which: range) -> None:
        for epoch in which:
            run[0].update_epoch(epoch)
            train(run[1], run[2], x, 2, run[0].regularizer)

    whole, first, second = start(1), start(1), start(2)
    epochs(whole, range(6))
    epochs(first, range(stop))
    for part, saved in zip(second, through_file([part.state_dict() for part in first]), strict=True):
        part.load_state_dict(saved)
    epochs(second, range(stop, 6))
    assert same_masks(whole[1], second[1])
    tensors: list[tuple[Tensor, Tensor]] = list(
        zip(whole[1].parameters(), second[1].parameters(), strict=True)
    )
    assert all(torch.equal(one, other) for one, other in tensors)


@pytest.mark.parametrize("key", ["num_iterations", "epochs_per_iteration", "rho"])
def test_wrong_arguments_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: expected a positive number, got 0"):
        ADMMPruner(nn.Linear(2, 2), [{"sparsity": 0.5}], **{key: 0})
    model = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    pruner = ADMMPruner(model, [{"sparsity": 0.5}], example_inputs=torch.randn(2, 2))
    with pytest.raises(ConfigError, match=r"^0: pruner 'admm' pulls at its weight"):
        pruner.compress()
