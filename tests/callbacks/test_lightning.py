"""Lightning's loop with a pruner: by its real trainer where it is installed, else by one of its interface."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from fxcompress.errors import FxcompressError
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.pruning import (
    ActivationAPoZRankFilterPruner,
    L1FilterPruner,
    TaylorFOWeightFilterPruner,
    get_masks,
)
from fxcompress.quantization import QAT_Quantizer
from tests.helpers import ready
from tests.optional import require
from tests.processes import CONFIG, batches, net

MODULE = "fxcompress.callbacks.lightning"
X = batches(1)[0][0]
MEASURING = [TaylorFOWeightFilterPruner, ActivationAPoZRankFilterPruner]


class Callback:
    """What ``lightning.pytorch.callbacks.Callback`` is to a subclass."""

    def __init__(self) -> None: ...


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``PruningCallback`` over the interface above."""
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks"):
        module = ModuleType(name)
        module.Callback = Callback  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).PruningCallback
    sys.modules.pop(MODULE, None)


class Lit(nn.Module):
    """A LightningModule: the network is an attribute, the optimizer is made when fitting begins."""

    def __init__(self, network: nn.Module, *, automatic: bool) -> None:
        super().__init__()
        self.network, self.automatic = network, automatic
        self.loaded: list[dict[str, Any]] = []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded.append(checkpoint)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        unrelated = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return [unrelated, torch.optim.SGD(self.network.parameters(), lr=0.05)]


def fit(model: Lit, callback: Any, epochs: int = 2) -> SimpleNamespace:
    """The calls Lightning makes; with automatic optimization backward runs within ``optimizer.step``."""
    trainer = SimpleNamespace(optimizers=model.configure_optimizers(), current_epoch=0)
    optimizer = trainer.optimizers[1]
    callback.on_train_start(trainer, model)
    for trainer.current_epoch in range(epochs):
        callback.on_train_epoch_start(trainer, model)
        for x, y in batches():

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                loss = cross_entropy(model.network(x), y)
                optimizer.zero_grad()
                loss.backward()
                return loss

            if model.automatic:
                optimizer.step(closure=closure)
            else:
                closure()
                optimizer.step()
    return trainer


def by_hand(cls: Any, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sums and weights of the same two epochs with an optimizer given to the pruner."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = cls(model, CONFIG, optimizer, example_inputs=X, statistics_batch_num=3)
    module = pruner.compress()
    for x, y in batches() * 2:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    return pruner.sums, module.state_dict()


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("cls", MEASURING)
def test_fitting_masks_and_trains_what_a_loop_of_ones_own_does(
    cls: Any, automatic: bool, callback: Any
) -> None:
    pruner = cls(net(), CONFIG, example_inputs=X, statistics_batch_num=3)
    model = Lit(pruner.compress(), automatic=automatic)
    trainer = fit(model, callback(pruner))
    assert pruner.optimizer is trainer.optimizers[1], "the one that trains the masked layers"
    assert (pruner.steps, pruner.epoch) == (8, 1)
    sums, weights = by_hand(cls, net())
    assert all(torch.equal(pruner.sums[name], value) for name, value in sums.items())
    found = model.network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_fitting_again_watches_the_new_optimizer_only(callback: Any) -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    model = Lit(pruner.compress(), automatic=True)
    following = callback(pruner)
    first = fit(model, following, epochs=1)
    assert pruner.steps == 4
    fit(model, following, epochs=1)
    assert pruner.steps == 8
    first.optimizers[1].step()
    assert pruner.steps == 8


def test_an_optimizer_that_the_pruner_has_stays(callback: Any) -> None:
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    pruner = L1FilterPruner(network, CONFIG, optimizer, example_inputs=X)
    model = Lit(pruner.compress(), automatic=True)
    callback(pruner).on_train_start(SimpleNamespace(optimizers=[optimizer], current_epoch=0), model)
    optimizer.step()
    assert pruner.steps == 1


def smooth_net(seed: int = 1) -> nn.Module:
    """A network whose masks include one on an activation: a sigmoid turns masked channels into 0.5."""
    layers = (nn.Conv2d(3, 8, 3), nn.Sigmoid(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    return ready(nn.Sequential(*layers), seed).train()


def test_the_masked_module_may_be_wrapped(callback: Any) -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    compiled: Any = torch.compile(pruner.compress(), backend="eager")
    model = Lit(nn.Sequential(compiled), automatic=True)
    fit(model, callback(pruner), epochs=1)
    assert pruner.steps == 4


def test_a_checkpoint_restores_the_pruner_before_the_model(callback: Any) -> None:
    pruner = TaylorFOWeightFilterPruner(smooth_net(), CONFIG, example_inputs=X, statistics_batch_num=3)
    model = Lit(pruner.compress(), automatic=True)
    saving = callback(pruner)
    fit(model, saving)
    checkpoint = {"state_dict": model.state_dict(), "callbacks": {saving.state_key: saving.state_dict()}}
    again = TaylorFOWeightFilterPruner(smooth_net(2), CONFIG, example_inputs=X, statistics_batch_num=3)
    resumed = Lit(again.compress(), automatic=True)
    loading = callback(again)
    trainer = SimpleNamespace(optimizers=resumed.configure_optimizers())
    with pytest.raises(RuntimeError, match=r"'_activation_mask_\w+' is a mask .*pruner\.load_state_dict"):
        resumed.load_state_dict(checkpoint["state_dict"])
    loading.setup(trainer, resumed, "fit")
    resumed.on_load_checkpoint(checkpoint)
    assert resumed.loaded == [checkpoint], "the module's own method is called, too"
    resumed.load_state_dict(checkpoint["state_dict"])
    loading.load_state_dict(checkpoint["callbacks"][loading.state_key])
    loading.on_train_start(trainer, resumed)
    loading.teardown(trainer, resumed, "fit")
    assert "on_load_checkpoint" not in vars(resumed)
    assert (again.steps, again.epoch) == (8, 1)
    assert torch.equal(resumed.network(X), model.network(X))
    assert get_masks(resumed.network).keys() == {"0", "2"}


def test_what_is_trained_has_to_be_what_was_compressed(callback: Any) -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    trainer = SimpleNamespace(optimizers=[])
    with pytest.raises(FxcompressError, match=r"L1FilterPruner has not compressed .*pruner\.compress\(\)"):
        callback(pruner).on_train_start(trainer, Lit(net(), automatic=True))
    pruner.compress()
    with pytest.raises(FxcompressError, match=r"the trained Lit does not hold the module .*without masks"):
        callback(pruner).on_train_start(trainer, Lit(pruner.model, automatic=True))


def test_something_else_than_a_pruner_is_refused(callback: Any) -> None:
    masked = L1FilterPruner(net(), CONFIG, example_inputs=X).compress()
    with pytest.raises(FxcompressError, match=r"expected a pruner, .*, got Sequential; .*compress\(\)"):
        callback(masked)


def test_a_quantizer_counts_steps(callback: Any) -> None:
    quantizer = QAT_Quantizer(
        net(), [{"quant_bits": 8, "op_types": ["Conv2d"], "quant_start_step": 6}], example_inputs=X
    )
    model = Lit(quantizer.compress(), automatic=True)
    following = callback(quantizer)
    rounding = [m for m in model.network.modules() if isinstance(m, FakeQuantize)]
    fit(model, following, epochs=1)
    assert quantizer.steps == 4
    assert rounding
    assert not any(m.quantizing for m in rounding)
    fit(model, following, epochs=1)
    assert quantizer.steps == 8
    assert all(m.quantizing for m in rounding)


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fxcompress\[lightning\]'"):
        importlib.import_module(MODULE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("cls", MEASURING)
def test_the_real_trainer_does_the_same(cls: Any, automatic: bool, tmp_path: Path) -> None:
    require(["lightning"])
    lightning = importlib.import_module("lightning.pytorch")
    real = importlib.reload(importlib.import_module(MODULE)).PruningCallback

    class Model(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.automatic_optimization = network, automatic

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.network.parameters(), lr=0.05)

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = cross_entropy(self.network(batch[0]), batch[1])
            if not automatic:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.network(batch[0])

    def run(epochs: int, checkpoint: str | None = None) -> tuple[Any, Any]:
        pruner = cls(smooth_net(), CONFIG, example_inputs=X, statistics_batch_num=3)
        model = Model(pruner.compress())
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        quiet = dict.fromkeys(off, False)
        trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[real(pruner)], **quiet)
        loader: DataLoader[Any] = DataLoader(batches(), batch_size=None)  # type: ignore[arg-type]
        trainer.fit(model, loader, loader, ckpt_path=checkpoint)
        return pruner, trainer

    pruner, trainer = run(2)
    sums, weights = by_hand(cls, smooth_net())
    assert all(torch.equal(pruner.sums[name], value) for name, value in sums.items())
    found = pruner.bound_model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    resumed, _ = run(3, str(tmp_path / "saved.ckpt"))
    assert (resumed.steps, resumed.epoch) == (12, 2)
    masks = get_masks(pruner.bound_model)
    assert all(
        torch.equal(mask["weight"], masks[name]["weight"])
        for name, mask in get_masks(resumed.bound_model).items()
    )
