"""Hugging Face's loop with a pruner: its callback's events by hand, and its real Trainer where it can run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fxcompress.errors import FxcompressError
from fxcompress.pruning import (
    ActivationAPoZRankFilterPruner,
    L1FilterPruner,
    Pruner,
    TaylorFOWeightFilterPruner,
    get_masks,
)
from tests.optional import missing, require
from tests.processes import CONFIG, batches, net

MODULE = "fxcompress.callbacks.transformers"
X = batches(1)[0][0]


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``PruningCallback`` on the library's own class, or on one of its interface."""
    if missing(["transformers"]):
        library = ModuleType("transformers")
        library.TrainerCallback = type("TrainerCallback", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).PruningCallback
    sys.modules.pop(MODULE, None)


class Accelerated(torch.optim.Optimizer):
    """As accelerate's: an ``Optimizer`` that was never initialized and passes steps on."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


def train(
    module: nn.Module, callback: Any, folder: Path, steps: int = 0, given: str | None = None
) -> SimpleNamespace:
    """The events of two epochs, from step number ``steps`` on, with a checkpoint after each."""
    optimizer = Accelerated(torch.optim.SGD(module.parameters(), lr=0.05))
    args = SimpleNamespace(output_dir=str(folder), resume_from_checkpoint=given)
    state = SimpleNamespace(global_step=steps, epoch=steps / 4, is_world_process_zero=True)
    callback.on_train_begin(args, state, None, model=module, optimizer=optimizer)
    for _ in range(2 - steps // 4):
        callback.on_epoch_begin(args, state, None, model=module, optimizer=optimizer)
        for x, y in batches():
            optimizer.optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
            optimizer.step()
            state.global_step += 1
            state.epoch += 0.25
        (folder / f"checkpoint-{state.global_step}").mkdir()
        callback.on_save(args, state, None, model=module, optimizer=optimizer)
    return state


def taylor(number: int = 3) -> TaylorFOWeightFilterPruner:
    return TaylorFOWeightFilterPruner(net(), CONFIG, example_inputs=X, statistics_batch_num=number)


def test_the_events_of_training_drive_the_pruner(callback: Any, tmp_path: Path) -> None:
    epochs: list[tuple[int, int]] = []

    class Recording(Pruner):
        name = "recording"

        def update_epoch(self, epoch: int) -> None:
            super().update_epoch(epoch)
            epochs.append((epoch, self.steps))

        def choose(self) -> None: ...

    pruner = Recording(net(), CONFIG, example_inputs=X)
    train(pruner.compress(), callback(pruner), tmp_path)
    assert epochs == [(0, 0), (1, 4)]
    assert pruner.steps == 8


def test_training_masks_and_trains_what_a_loop_of_ones_own_does(callback: Any, tmp_path: Path) -> None:
    pruner = taylor()
    module = pruner.compress()
    train(module, callback(pruner), tmp_path)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X, statistics_batch_num=3)
    masked = own.compress()
    for x, y in batches() * 2:
        optimizer.zero_grad()
        cross_entropy(masked(x), y).backward()
        optimizer.step()
    expected = masked.state_dict()
    assert get_masks(module).keys() == {"0", "2"}
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("named", [False, True])
def test_training_resumes_from_a_checkpoint(named: bool, callback: Any, tmp_path: Path) -> None:
    pruner = taylor(6)
    module = pruner.compress()
    # The weights of step 4 are those of the first epoch alone.
    half = taylor(6)
    first = half.compress()
    train(module, callback(pruner), tmp_path)
    saved = torch.load(tmp_path / "checkpoint-4" / "pruner.pt", weights_only=True)
    assert (saved["steps"], saved["batches"], saved["choice"]) == (4, 4, None)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.05)
    for x, y in batches():
        optimizer.zero_grad()
        cross_entropy(first(x), y).backward()
        optimizer.step()
    again = tmp_path / "again" if named else tmp_path
    again.mkdir(exist_ok=True)
    (tmp_path / "checkpoint-8").rename(tmp_path / "last")
    train(first, callback(half), again, 4, str(tmp_path / "checkpoint-4") if named else None)
    assert (half.steps, half.epoch) == (8, 1)
    expected = module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first.state_dict().items())


def test_a_checkpoint_without_the_pruners_state_is_warned_of(callback: Any, tmp_path: Path) -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    with pytest.warns(UserWarning, match=r"no .*checkpoint-4.pruner\.pt.*resume_from_checkpoint"):
        train(pruner.compress(), callback(pruner), tmp_path, 4)


def test_something_else_than_a_pruner_is_refused(callback: Any) -> None:
    with pytest.raises(FxcompressError, match=r"expected a pruner, .*, got Sequential; .*compress\(\)"):
        callback(taylor().compress())


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fxcompress\[transformers\]'"):
        importlib.import_module(MODULE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", [TaylorFOWeightFilterPruner, ActivationAPoZRankFilterPruner])
def test_the_real_trainer_masks_saves_and_resumes(cls: Any, callback: Any, tmp_path: Path) -> None:
    require(["transformers"])
    library = importlib.import_module("transformers")
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"intermediate_size": 32, "max_position_embeddings": 16, "num_labels": 3}
    config = library.BertConfig(**sizes, **more)
    torch.manual_seed(0)
    tokens, mask = torch.randint(0, 30, (32, 8)), torch.ones(8, dtype=torch.long)
    rows = [
        {"input_ids": row, "attention_mask": mask, "labels": torch.tensor(i % 3)}
        for i, row in enumerate(tokens)
    ]
    example = {name: torch.stack([row[name] for row in rows[:2]]) for name in rows[0]}
    entry = {"sparsity": 0.5, "op_names": ["*.intermediate.dense"]}

    def run(epochs: int, resume: str | None) -> Any:
        torch.manual_seed(1)
        model = library.BertForSequenceClassification(config)
        pruner = cls(model, [entry], example_inputs=example, statistics_batch_num=3)
        arguments = library.TrainingArguments(
            str(tmp_path), num_train_epochs=epochs, per_device_train_batch_size=4, save_strategy="epoch",
            report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = library.Trainer(
            pruner.compress(), arguments, train_dataset=rows, callbacks=[callback(pruner)]
        )
        trainer.train(resume_from_checkpoint=resume)
        return pruner

    pruner = run(2, None)
    masks = get_masks(pruner.bound_model)
    assert [float((masks[name]["weight"] == 0).float().mean()) for name in pruner.counts] == [0.5, 0.5]
    assert set(pruner.counts.values()) == {3}
    resumed = run(3, str(tmp_path / "checkpoint-8"))
    assert (resumed.steps, resumed.epoch) == (24, 2)
    again = get_masks(resumed.bound_model)
    assert all(torch.equal(again[name]["weight"], masks[name]["weight"]) for name in pruner.counts)
