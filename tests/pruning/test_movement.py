"""Movement: scores by hand, also of masked weights; the schedule by the step; rows; checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.pruning import MovementPruner, get_masks
from tests.helpers import check_exact, image, ready
from tests.pruning.training import SUBJECTS, check_speedup, rows, same_masks, sgd, through_file, train, zeros

pytestmark = pytest.mark.filterwarnings("ignore:fxcompress.*not pruned")
WEIGHT = [[4.0, -1.0], [0.5, 2.0], [-3.0, 1.0]]
X = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
C = torch.tensor([1.0, -2.0, 0.5])


def linear(**options: Any) -> tuple[MovementPruner, nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(WEIGHT))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    pruner = MovementPruner(model, [{"sparsity": 0.5}], optimizer, example_inputs=X, lr=0.1, **options)
    return pruner, pruner.compress(), optimizer


def step(module: nn.Module, optimizer: torch.optim.Optimizer, *, backward: int = 1) -> None:
    """The loss is Σ c_i y_i over the batch, so ∂L/∂W'_ij = c_i Σ_b x_bj = c_i · (4, 1)_j, whatever W is."""
    optimizer.zero_grad()
    for _ in range(backward):
        (module(X) * C).sum().backward()
    optimizer.step()


def test_scores_accumulate_minus_lr_times_the_masked_weights_gradient_times_the_weight() -> None:
    pruner, module, optimizer = linear(warm_up_step=1, cool_down_beginning_step=2)
    module.train()
    step(module, optimizer)
    # gradients [[4, 1], [-8, -2], [2, 0.5]]; S = -0.1 · gradient · W
    by_hand = torch.tensor([[-1.6, 0.1], [0.4, 0.4], [0.6, -0.05]])
    torch.testing.assert_close(pruner.scores[""], by_hand, rtol=0, atol=1e-6)
    weight = module.get_parameter("weight")
    torch.testing.assert_close(  # W - 0.25 · gradient, nothing masked yet
        weight.detach(), torch.tensor([[3.0, -1.25], [2.5, 2.5], [-3.5, 0.875]]), rtol=0, atol=0
    )
    assert zeros(module) == {"": 0}, "s_1 = 0"
    step(module, optimizer)
    # S -= 0.1 · gradient · W: [[-1.2, 0.125], [2, 0.5], [0.7, -0.04375]]
    by_hand = torch.tensor([[-2.8, 0.225], [2.4, 0.9], [1.3, -0.09375]])
    torch.testing.assert_close(pruner.scores[""], by_hand, rtol=0, atol=1e-6)
    assert get_masks(module)[""]["weight"].tolist() == [[0, 0], [1, 1], [1, 0]], "the three lowest of six"


def test_masked_weights_get_no_gradient_but_their_scores_move_and_may_come_back() -> None:
    pruner, module, optimizer = linear(warm_up_step=0, cool_down_beginning_step=1)
    module.train()
    step(module, optimizer)
    mask = get_masks(module)[""]["weight"]
    assert mask.tolist() == [[0, 0], [1, 1], [1, 0]]  # scores [[-1.6, .1], [.4, .4], [.6, -.05]]
    weight = module.get_parameter("weight").detach().clone()
    scores = pruner.scores[""].clone()
    step(module, optimizer)
    gradient = torch.tensor([[4.0, 1.0], [-8.0, -2.0], [2.0, 0.5]])
    torch.testing.assert_close(pruner.scores[""], scores - 0.1 * gradient * weight, rtol=0, atol=1e-6)
    moved = module.get_parameter("weight").detach() != weight
    assert torch.equal(moved, mask != 0)
    with torch.no_grad():  # W_00 masked at -1: its gradient 4 says that it moves away from 0
        module.get_parameter("weight")[0, 0] = -100.0
    step(module, optimizer)
    assert get_masks(module)[""]["weight"][0, 0] == 1


@pytest.mark.parametrize("subject", SUBJECTS)
def test_scores_move_by_the_gradient_of_the_masked_weight_in_any_network(subject: str) -> None:
    """Oracle: the plain model with ``W' = W · M`` as its weights, and their gradients."""
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    pruner = MovementPruner(
        model, [{"sparsity": 0.5}], optimizer,
        warm_up_step=0, cool_down_beginning_step=1, lr=0.1, example_inputs=x,
    )  # fmt: skip
    module = pruner.compress()
    train(module, optimizer, x, 2)
    state = module.state_dict()
    plain = make()
    plain.load_state_dict({name: state[name] * state.get(f"{name}_mask", 1) for name in plain.state_dict()})
    weights = {name: state[f"{name}.weight"].clone() for name in pruner.scores}
    before = {name: value.clone() for name, value in pruner.scores.items()}
    train(module, optimizer, x, 1)
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.0), x, 1)
    for name, score in pruner.scores.items():
        gradient = plain.get_submodule(name).get_parameter("weight").grad
        assert gradient is not None
        torch.testing.assert_close(
            score, before[name] - 0.1 * gradient * weights[name], rtol=1e-9, atol=1e-12
        )
        assert bool((state[f"{name}.weight_mask"] == 0).any())


def test_gradients_of_several_backward_passes_count_and_those_of_evaluation_do_not() -> None:
    pruner, module, optimizer = linear(warm_up_step=5, cool_down_beginning_step=6)
    module.train()
    step(module, optimizer, backward=2)
    by_hand = 2 * torch.tensor([[-1.6, 0.1], [0.4, 0.4], [0.6, -0.05]])
    torch.testing.assert_close(pruner.scores[""], by_hand, rtol=0, atol=1e-6)
    module.eval()
    (module(X) * C).sum().backward()
    optimizer.step()
    torch.testing.assert_close(pruner.scores[""], by_hand, rtol=0, atol=1e-6)


def test_gradients_that_overflowed_leave_the_scores_alone() -> None:
    pruner, module, optimizer = linear(warm_up_step=5, cool_down_beginning_step=6)
    module.train()
    (module(X) * torch.inf).sum().backward()  # a GradScaler would skip this step
    step(module, optimizer)
    assert pruner.scores[""].isfinite().all()
    step(module, optimizer)
    assert pruner.scores[""].ne(0).all()


def test_the_schedule_is_cubic_between_warm_up_and_cool_down() -> None:
    model = nn.Linear(1000, 1)
    optimizer = sgd(model)
    pruner = MovementPruner(
        model, [{"sparsity": 0.8}], optimizer,
        warm_up_step=2, cool_down_beginning_step=6, example_inputs=torch.randn(2, 1000),
    )  # fmt: skip
    module = pruner.compress()
    got = []
    for _ in range(8):
        train(module, optimizer, torch.randn(2, 1000), 1)
        got.append(zeros(module)[""])
    # after steps 3, 4, 5: 0.8 (1 - (3/4)^3, 1 - (2/4)^3, 1 - (1/4)^3) = 0.4625, 0.7, 0.7875
    assert got == [0, 0, 462, 700, 787, 800, 800, 800]


def test_ties_go_to_the_lower_index() -> None:
    pruner, module, _ = linear(warm_up_step=0, cool_down_beginning_step=1)
    pruner.finish()  # all scores 0
    assert get_masks(module)[""]["weight"].tolist() == [[0, 0], [0, 1], [1, 1]]


@pytest.mark.parametrize("granularity", ["element", "out_channel"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_training_ends_in_an_exact_small_model(subject: str, granularity: str) -> None:
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    pruner = MovementPruner(
        model, [{"sparsity": 0.5, "granularity": granularity}], optimizer,
        warm_up_step=1, cool_down_beginning_step=4, example_inputs=x,
    )  # fmt: skip
    module = pruner.compress()
    dense = fxcompress.capture(ready(make()), x)
    check_exact(module, dense, x)
    train(module, optimizer, x, 6)
    check_speedup(module, x)
    pruner.finish()
    small = check_speedup(module, x)
    if granularity == "element":
        for layer, masked in zeros(module).items():
            assert masked == module.get_submodule(layer).get_parameter("weight").numel() // 2
    else:
        layer, width = {"convnet": ("0", 8), "transformer": ("up", 16)}[subject]
        assert rows(module)[layer] == width // 2
        assert small.get_submodule(layer).get_parameter("weight").shape[0] == width // 2
    train(module, optimizer, x, 1)
    assert pruner.steps == 7
    check_speedup(module, x)


def test_behind_a_norm_masked_rows_still_move_until_the_end() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 2, 1)))
    x = image(4, 3, 6, 6)
    optimizer = sgd(model)
    config = [{"sparsity": 0.5, "granularity": "out_channel", "op_names": ["0"]}]
    pruner = MovementPruner(
        model, config, optimizer, warm_up_step=0, cool_down_beginning_step=1, example_inputs=x
    )
    module = pruner.compress()
    train(module, optimizer, x, 1)
    gone = (get_masks(module)["0"]["weight"].flatten(1) == 0).all(1)
    before = pruner.scores["0"].clone()
    train(module, optimizer, x, 1)
    assert int(gone.sum()) == 4
    assert bool((pruner.scores["0"] != before)[gone].flatten(1).any(1).all())
    assert "1" not in get_masks(module)
    pruner.finish()
    assert rows(module) == {"0": 4, "1": 4}


@pytest.mark.parametrize("granularity", ["element", "out_channel"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_run_resumed_from_a_checkpoint_has_the_masks_of_an_uninterrupted_one(
    granularity: str, stop: int
) -> None:
    make, x = SUBJECTS["convnet"]

    def start(seed: int) -> tuple[MovementPruner, Any, torch.optim.Optimizer]:
        model = make(seed)  # type: ignore[call-arg]
        optimizer = sgd(model)
        pruner = MovementPruner(
            model, [{"sparsity": 0.5, "granularity": granularity}], optimizer,
            warm_up_step=2, cool_down_beginning_step=6, example_inputs=x,
        )  # fmt: skip
        return pruner, pruner.compress(), optimizer

    def steps(run: tuple[MovementPruner, Any, torch.optim.Optimizer], count: int) -> None:
        train(run[1], run[2], x, count)

    whole, first, second = start(1), start(1), start(2)
    steps(whole, 9)
    steps(first, stop)
    for part, saved in zip(second, through_file([part.state_dict() for part in first]), strict=True):
        part.load_state_dict(saved)
    assert same_masks(first[1], second[1])
    steps(second, 9 - stop)
    for run in (whole, second):
        run[0].finish()
    assert same_masks(whole[1], second[1])
    assert all(torch.equal(value, whole[0].scores[name]) for name, value in second[0].scores.items())
    third = start(3)
    for part, saved in zip(third, through_file([part.state_dict() for part in whole]), strict=True):
        part.load_state_dict(saved)
    assert same_masks(third[1], whole[1])


def test_wrong_arguments_are_refused() -> None:
    def made(entry: dict[str, Any] | None = None, **options: Any) -> MovementPruner:
        steps = {"warm_up_step": 0, "cool_down_beginning_step": 1, **options}
        return MovementPruner(nn.Linear(2, 2), [entry or {"sparsity": 0.5}], **steps)

    with pytest.raises(ConfigError, match=r"expected 0 <= warm_up_step < .*, got 1 and 1"):
        made(warm_up_step=1)
    with pytest.raises(ConfigError, match=r"lr: expected a positive number, got 0"):
        made(lr=0)
    with pytest.raises(ConfigError, match=r"config_list\[0\]: pruner: .*got 'l1'"):
        made({"sparsity": 0.5, "pruner": "l1"})
    with pytest.raises(ConfigError, match=r"config_list\[0\]: end_epoch: MovementPruner follows no schedule"):
        made({"sparsity": 0.5, "end_epoch": 3})
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    model = nn.Sequential(normed, nn.ReLU(), nn.Linear(2, 2))
    pruner = MovementPruner(
        model, [{"sparsity": 0.5}], example_inputs=torch.randn(2, 2),
        warm_up_step=0, cool_down_beginning_step=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"^0: pruner 'movement' needs the gradient of its weight"):
        pruner.compress()
