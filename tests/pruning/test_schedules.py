"""Schedules by the epoch: their formulas, when masks change, exact counts, checkpoints, wrong configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.pruning import (
    PRUNERS,
    ADMMPruner,
    AGPPruner,
    EpochPruner,
    IterativePruner,
    L1FilterPruner,
    LevelPruner,
    LinearPruner,
    LotteryTicketPruner,
    OneshotPruner,
    ScheduledPruner,
    WeightMasker,
    get_masks,
    register,
)
from tests.helpers import image, ready
from tests.pruning.training import SUBJECTS, check_speedup, rows, same_masks, sgd, through_file, train, zeros

pytestmark = pytest.mark.filterwarnings("ignore:fxcompress.*not pruned")

KEYS = {"initial_sparsity": 0.2, "final_sparsity": 0.8, "start_epoch": 2, "end_epoch": 10, "frequency": 2}


def line(values: int = 100) -> nn.Module:
    """A model with one weight, of ascending magnitudes."""
    model = nn.Linear(values, 1)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, values + 1))
    return model


def attached(cls: type[EpochPruner], **entry: Any) -> tuple[EpochPruner, nn.Module]:
    model = line()
    pruner = cls(model, [{**KEYS, **entry}], sgd(model), example_inputs=torch.randn(2, 100))
    return pruner, pruner.compress()


def count(module: nn.Module) -> int:
    return zeros(module).get("", 0)


# By hand for s_i = 0.2, s_f = 0.8, t0 = 2, Δt = 2, n = 4, so p = 0, 1/4, 1/2, 3/4, 1:
# AGP 0.8 - 0.6 (1 - p)^3 = 0.2, 0.546875, 0.725, 0.790625, 0.8
# linear 0.2 + 0.6 p = 0.2, 0.35, 0.5, 0.65, 0.8
@pytest.mark.parametrize(
    ("cls", "at_step"), [(AGPPruner, (20, 54, 72, 79, 80)), (LinearPruner, (20, 35, 50, 65, 80))]
)
def test_masks_change_at_the_steps_of_the_schedule_and_count_floor_of_s_n(
    cls: type[EpochPruner], at_step: tuple[int, ...]
) -> None:
    pruner, module = attached(cls)
    expected = [0, 0, *(n for n in at_step for _ in range(2)), at_step[-1]]
    got = []
    for epoch in range(13):
        pruner.update_epoch(epoch)
        got.append(count(module))
        mask = get_masks(module).get("", {}).get("weight", torch.ones(1, 100))
        assert mask.flatten()[: got[-1]].eq(0).all(), "the smallest magnitudes go"
    assert got == expected


def test_the_formulas_by_hand() -> None:
    agp, _ = attached(AGPPruner)
    linear, _ = attached(LinearPruner)
    goal = agp.goals[""]
    by_hand = [(0, 0, 0), (3, 0.2, 0.2), (4, 0.546875, 0.35), (6, 0.725, 0.5), (9, 0.790625, 0.65)]
    for epoch, cubic, straight in by_hand:
        agp.update_epoch(epoch)
        linear.update_epoch(epoch)
        assert agp.amount(goal) == pytest.approx(cubic, abs=1e-12)
        assert linear.amount(goal) == pytest.approx(straight, abs=1e-12)
    agp.update_epoch(10)
    assert agp.amount(goal) == 0.8, "exactly"


def test_epochs_may_be_skipped_and_repeated_but_not_go_back() -> None:
    pruner, module = attached(AGPPruner)
    pruner.update_epoch(1)
    assert count(module) == 0
    pruner.update_epoch(5)  # past epochs 2 and 4
    assert count(module) == 54
    with torch.no_grad():  # the order of magnitudes turns round: only a new choice would see it
        module.get_parameter("weight").copy_(module.get_parameter("weight").flip(1))
    before = get_masks(module)[""]["weight"]
    pruner.update_epoch(5)
    assert torch.equal(get_masks(module)[""]["weight"], before)
    pruner.update_epoch(6)
    assert get_masks(module)[""]["weight"].flatten()[-72:].eq(0).all()
    pruner.update_epoch(50)
    assert count(module) == 80
    with pytest.raises(FxcompressError, match=r"expected epoch 50 or a later one, got 49"):
        pruner.update_epoch(49)


def test_a_frequency_that_does_not_divide_the_epochs_makes_the_last_step_shorter() -> None:
    pruner, module = attached(LinearPruner, initial_sparsity=0.0, start_epoch=0, end_epoch=5, frequency=2)
    got = []
    for epoch in range(7):
        pruner.update_epoch(epoch)
        got.append(count(module))
    assert got == [0, 0, 32, 32, 64, 80, 80]  # 0.8 · 2/5, 0.8 · 4/5, 0.8


def test_of_equal_weights_the_lower_index_goes_and_sparsity_means_the_final_one() -> None:
    model = nn.Linear(10, 1)
    nn.init.ones_(model.weight)
    pruner = AGPPruner(model, [{"sparsity": 0.39, "end_epoch": 1}], example_inputs=torch.randn(2, 10))
    module = pruner.compress()
    pruner.update_epoch(1)
    assert get_masks(module)[""]["weight"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 1, 1]]


def test_total_sparsity_ranks_all_layers_of_the_entry_at_every_step() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model.get_submodule("0").get_parameter("weight").copy_(torch.arange(1.0, 17).view(4, 4))
        model.get_submodule("1").get_parameter("weight").copy_(torch.arange(9.0, 25).view(4, 4))
    config = [{"total_sparsity": 0.5, "end_epoch": 2}]
    pruner = LinearPruner(model, config, example_inputs=torch.randn(2, 4))
    module = pruner.compress()
    pruner.update_epoch(1)  # 0.25 · 32 = 8 smallest: 1..8
    assert zeros(module) == {"0": 8, "1": 0}
    pruner.update_epoch(2)  # 16 smallest: 1..8, and 9..12 of both
    assert zeros(module) == {"0": 12, "1": 4}


def test_entries_may_name_their_criterion_and_all_change_together() -> None:
    model, x = SUBJECTS["convnet"][0](), SUBJECTS["convnet"][1]
    config = [
        {"sparsity": 0.5, "end_epoch": 2, "pruner": "l1", "op_types": ["Conv2d"]},
        {"sparsity": 0.5, "end_epoch": 2, "op_types": ["Linear"]},
    ]
    pruner = LinearPruner(model, config, sgd(model), example_inputs=x)
    module = pruner.compress()
    for epoch in range(3):
        pruner.update_epoch(epoch)
    assert set(pruner.criteria) == {"l1", "level"}
    assert rows(module) == {"0": 4, "1": 4, "3": 3, "7": 0}
    assert zeros(module)["7"] == 60
    check_speedup(module, x)


def test_a_measuring_criterion_measures_anew_whenever_masks_change() -> None:
    class Data:
        reads = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.reads += 1
            yield image(4, 3, 6, 6), torch.zeros(4, 5, dtype=torch.float64)

    def loss_fn(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (output - batch[1]).square().mean()

    model, data = SUBJECTS["convnet"][0](), Data()
    config = [{"sparsity": 0.5, "end_epoch": 4, "frequency": 2, "pruner": "taylor", "op_types": ["Conv2d"]}]
    pruner = AGPPruner(model, config, data=data, loss_fn=loss_fn, example_inputs=image(4, 3, 6, 6))
    module = pruner.compress()
    for epoch in range(6):
        pruner.update_epoch(epoch)
    assert data.reads == 2, "at epochs 2 and 4; at 0 nothing is to go"
    assert rows(module) == {"0": 4, "1": 4, "3": 3}
    with pytest.raises(ConfigError, match=r"'taylor' measures the model on batches: expected data="):
        AGPPruner(model, config, sgd(model))


class FirstHalf(WeightMasker):
    """Masks the leading share of the weights."""

    def calc_mask(self, sparsity: float, wrapper: Any, wrapper_idx: int | None = None) -> dict[str, Tensor]:
        mask = torch.ones_like(wrapper.weight)
        mask.view(-1)[: int(sparsity * mask.numel())] = 0
        return {"weight_mask": mask}


def test_a_schedule_drives_a_masker_of_the_seeds_api_too() -> None:
    @register
    class Leading(OneshotPruner):
        name = "leading"
        masker_class = FirstHalf

    model = line(10)
    config = [{"sparsity": 0.8, "end_epoch": 2}]
    pruner = LinearPruner(model, config, pruning_algorithm="leading", example_inputs=torch.randn(2, 10))
    module = pruner.compress()
    pruner.update_epoch(1)
    assert count(module) == 4
    state = through_file(pruner.state_dict())
    pruner.update_epoch(2)
    assert count(module) == 8
    pruner.load_state_dict(state)
    assert count(module) == 4
    with pytest.raises(ConfigError, match=r"needs a criterion that ranks"):
        LotteryTicketPruner(model, [{"sparsity": 0.8, "prune_iterations": 2, "pruner": "leading"}])


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("algorithm", ["l1", "level"])
@pytest.mark.parametrize("cls", [AGPPruner, LinearPruner])
def test_training_under_a_schedule_ends_in_an_exact_small_model(
    cls: type[EpochPruner], algorithm: str, subject: str
) -> None:
    make, x = SUBJECTS[subject]
    model = make()
    optimizer = sgd(model)
    config = [{"sparsity": 0.5, "end_epoch": 3}]
    pruner = cls(model, config, optimizer, pruning_algorithm=algorithm, example_inputs=x)
    module = pruner.compress()
    for epoch in range(5):
        pruner.update_epoch(epoch)
        train(module, optimizer, x)
    small = check_speedup(module, x)
    if algorithm == "l1":
        wide = {"convnet": ("0", 8), "transformer": ("up", 16)}[subject]
        assert small.get_submodule(wide[0]).get_parameter("weight").shape[0] == wide[1] // 2
    else:
        for layer, masked in zeros(module).items():
            assert masked == module.get_submodule(layer).get_parameter("weight").numel() // 2


def test_entries_with_schedules_of_their_own_move_at_their_own_epochs() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    config = [
        {"sparsity": 0.4, "end_epoch": 4, "frequency": 2},
        {"op_names": ["1"], "final_sparsity": 0.3, "start_epoch": 1, "end_epoch": 3, "frequency": 1},
    ]
    pruner = LinearPruner(model, config, example_inputs=torch.randn(2, 10))
    module = pruner.compress()
    got = []
    for epoch in range(5):
        pruner.update_epoch(epoch)
        got.append((zeros(module).get("0", 0), zeros(module).get("1", 0)))
    assert got == [(0, 0), (0, 0), (20, 15), (20, 30), (40, 30)]


@pytest.mark.parametrize("aware", [True, False])
def test_masks_chosen_anew_lie_on_the_parameters_that_had_them(aware: bool) -> None:
    make, x = SUBJECTS["convnet"]
    pruner = L1FilterPruner(
        make(), [{"sparsity": 0.5, "op_types": ["Conv2d"]}], example_inputs=x, dependency_aware=aware
    )
    module = pruner.compress()
    names, first = set(module.state_dict()), get_masks(module)["0"]["weight"]
    with torch.no_grad():
        module.get_parameter("0.weight").copy_(module.get_parameter("0.weight").flip(0))
    pruner.update_mask()
    assert set(module.state_dict()) == names
    assert torch.equal(get_masks(module)["0"]["weight"], first.flip(0))


@pytest.mark.parametrize("criterion", sorted(PRUNERS))
def test_every_criterion_can_be_driven(criterion: str) -> None:
    make, x = SUBJECTS["convnet"]
    model = make()
    layer = "7" if criterion == "wanda" else "0"
    config = [{"sparsity": 0.5, "end_epoch": 4, "frequency": 2, "op_names": [layer]}]
    pruner = LinearPruner(
        model, config, sgd(model), pruning_algorithm=criterion, example_inputs=x,
        data=[(x, 0.0)], loss_fn=lambda output, _: output.square().mean(),
    )  # fmt: skip
    module = pruner.compress()
    got = []
    for epoch in range(5):
        pruner.update_epoch(epoch)
        masks = get_masks(module)
        got.append({name: float((m["weight"] == 0).double().mean()) for name, m in masks.items()})
        train(module, torch.optim.SGD(module.parameters(), lr=0.05), x, 1)
    assert got[1] == {}
    assert [g[layer] for g in got[2:]] == [0.25, 0.25, 0.5]
    check_speedup(module, x)


@pytest.mark.parametrize("algorithm", ["l1", "level"])
def test_weights_computed_from_parameters_are_masked_anew_too(algorithm: str) -> None:
    torch.manual_seed(0)
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 8))
    model = ready(nn.Sequential(normed, nn.Sigmoid(), nn.Linear(8, 3)))
    x = image(4, 6)
    optimizer = sgd(model)
    config = [{"sparsity": 0.5, "end_epoch": 2, "op_names": ["0"]}]
    pruner = LinearPruner(model, config, optimizer, pruning_algorithm=algorithm, example_inputs=x)
    module = pruner.compress()
    got = []
    for epoch in range(3):
        pruner.update_epoch(epoch)
        masks = [v for n, v in module.state_dict().items() if "mask" in n and v.numel() in (48, 8)]
        got.append(sorted({int((mask == 0).sum()) for mask in masks}))
        train(module, optimizer, x)
        check_speedup(module, x)
    assert got == ([[], [12], [24]] if algorithm == "level" else [[], [2], [4]])


def test_a_checkpoint_brings_back_mask_nodes_that_came_one_after_the_other() -> None:
    """Two sigmoids: behind the narrow layer nothing is masked at first."""

    def start(seed: int) -> tuple[LinearPruner, Any]:
        torch.manual_seed(seed)
        layers = [nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2), nn.Sigmoid(), nn.Linear(2, 3)]
        model = ready(nn.Sequential(*layers), seed)
        config = [{"sparsity": 0.6, "end_epoch": 2}]
        pruner = LinearPruner(model, config, pruning_algorithm="l1", example_inputs=image(4, 4))
        return pruner, pruner.compress()

    def masks(module: nn.Module) -> int:
        return sum("activation_mask" in name for name in module.state_dict())

    pruner, module = start(1)
    counts = []
    for epoch in range(3):
        pruner.update_epoch(epoch)
        counts.append(masks(module))
    assert counts == [0, 1, 2]
    other, twin = start(2)
    state = through_file([pruner.state_dict(), module.state_dict()])
    other.load_state_dict(state[0])
    assert same_masks(module, twin)
    twin.load_state_dict(state[1])
    assert torch.equal(module(image(4, 4)), twin(image(4, 4)))
    check_speedup(twin, image(4, 4))


@pytest.mark.parametrize("algorithm", ["l1", "level"])
@pytest.mark.parametrize("stop", [0, 2, 3, 5])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_run_resumed_from_a_checkpoint_has_the_masks_of_an_uninterrupted_one(
    subject: str, stop: int, algorithm: str
) -> None:
    make, x = SUBJECTS[subject]
    config = [{"sparsity": 0.6, "end_epoch": 6, "frequency": 2}]

    def start(seed: int) -> tuple[AGPPruner, Any, torch.optim.Optimizer]:
        model = make(seed)  # type: ignore[call-arg]
        optimizer = sgd(model)
        pruner = AGPPruner(model, config, optimizer, pruning_algorithm=algorithm, example_inputs=x)
        return pruner, pruner.compress(), optimizer

    def epochs(pruner: AGPPruner, module: Any, optimizer: torch.optim.Optimizer, which: range) -> None:
        for epoch in which:
            pruner.update_epoch(epoch)
            train(module, optimizer, x)

    whole = start(1)
    epochs(*whole, range(8))
    first = start(1)
    epochs(*first, range(stop))
    state = through_file([part.state_dict() for part in first])
    second = start(2)  # another process begins with other weights
    for part, saved in zip(second, state, strict=True):
        part.load_state_dict(saved)
    assert same_masks(second[1], first[1])
    assert second[0].state_dict()["begun"] == (stop - 1 if stop else None)
    epochs(*second, range(stop, 8))
    assert same_masks(second[1], whole[1])
    for one, other in zip(second[1].parameters(), whole[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_restores_the_masks_without_the_models_state() -> None:
    make, x = SUBJECTS["convnet"]
    config = [{"sparsity": 0.5, "end_epoch": 1, "op_types": ["Conv2d"]}]
    one, two = (AGPPruner(make(seed), config, pruning_algorithm="l1", example_inputs=x) for seed in (1, 2))  # type: ignore[call-arg]
    first, second = one.compress(), two.compress()
    one.update_epoch(1)
    two.load_state_dict(through_file(one.state_dict()))
    assert same_masks(first, second)
    assert rows(second) == {"0": 4, "1": 4, "3": 3}
    straight, by_level = (cls(make(), config, example_inputs=x) for cls in (LinearPruner, AGPPruner))
    straight.compress()
    by_level.compress()
    with pytest.raises(FxcompressError, match=r"checkpoint is of pruner 'agp', this is 'linear'"):
        straight.load_state_dict(one.state_dict())
    with pytest.raises(ConfigError, match=r"of criterion 'l1', the config list names 'level'"):
        by_level.load_state_dict(one.state_dict())


def test_summary_and_export_work_as_for_any_pruner(tmp_path: Any) -> None:
    pruner, _ = attached(AGPPruner)
    pruner.update_epoch(10)
    assert pruner.summary().columns[2]._cells == ["80.0%"]
    pruner.export_model(tmp_path / "weights.pt", tmp_path / "masks.safetensors")
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert int((saved["weight"] == 0).sum()) == 80


HALF = {"sparsity": 0.5, "end_epoch": 2}
WRONG: list[tuple[type[ScheduledPruner], dict[str, Any], str]] = [
    (AGPPruner, {"sparsity": 0.5}, r"config_list\[0\]: end_epoch: expected the epoch at which '' reaches"),
    (LinearPruner, {**HALF, "end_epoch": 0}, r"expected more than start_epoch \(0 for ''\), got 0"),
    (AGPPruner, {**HALF, "initial_sparsity": 0.6}, r"initial_sparsity: expected at most"),
    (AGPPruner, {**HALF, "frequency": 0}, r"frequency: expected an integer of at least 1"),
    (AGPPruner, {**HALF, "prune_iterations": 2}, r"prune_iterations: AGPPruner follows"),
    (AGPPruner, {**HALF, "pruner": "agp"}, r"pruner: expected one of"),
    (LotteryTicketPruner, {"sparsity": 0.5}, r"expected in how many rounds '' reaches"),
    (LotteryTicketPruner, HALF, r"end_epoch: LotteryTicketPruner follows"),
    (ADMMPruner, {"sparsity": 0.5, "frequency": 2}, r"frequency: ADMMPruner follows no schedule"),
    (IterativePruner, {"total_sparsity": 0.5, "end_epoch": 2}, r"total_sparsity: IterativePruner counts"),
    (IterativePruner, {**HALF, "pruner": "level"}, r"whole output channels, got pruner 'level'"),
    (IterativePruner, {**HALF, "granularity": [2, 2]}, r"with granularity \(2, 2\)"),
]


@pytest.mark.parametrize(("cls", "entry", "match"), WRONG)
def test_a_wrong_config_is_refused_at_once(
    cls: type[ScheduledPruner], entry: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        cls(line(), [entry])


def test_only_pruners_with_a_schedule_take_its_keys() -> None:
    entry = {"sparsity": 0.5, "end_epoch": 2}
    with pytest.raises(ConfigError, match=r"config_list\[0\]: end_epoch: compile\(\) has no training loop"):
        fxcompress.compile(line(), [entry])
    with pytest.raises(ConfigError, match=r"config_list\[0\]: end_epoch: LevelPruner follows no schedule"):
        LevelPruner(line(), [entry])
    with pytest.raises(ConfigError, match=r"pruning_algorithm: .*got 'levl'; did you mean 'level'"):
        AGPPruner(line(), [entry], pruning_algorithm="levl")
    with pytest.raises(TypeError, match="abstract"):
        EpochPruner(line(), [entry])  # type: ignore[abstract]
