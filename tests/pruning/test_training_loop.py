"""Masked models in training loops: plain, accumulating, mixed precision, compiled, distributed, resumed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy

import fxcompress
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import (
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    L1FilterPruner,
    OneshotPruner,
    Pruner,
    TaylorFOWeightFilterPruner,
    WeightMasker,
    Wrapper,
    get_masks,
)
from tests.comparing import relative_error, run
from tests.helpers import EXACT, image, ready
from tests.processes import CONFIG, batches, everything, net, together

X = image(4, 3, 6, 6)
LR = 0.05


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR, **options)


def step(module: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor = X) -> None:
    optimizer.zero_grad()
    module(x).square().mean().backward()
    optimizer.step()


def gone(module: CompiledModule, layer: str = "0") -> Tensor:
    """Which entries of the layer's weight are masked."""
    return get_masks(module)[layer]["weight"] == 0


def weight(module: nn.Module, layer: str = "0") -> Tensor:
    return module.get_submodule(layer).get_parameter("weight").detach().clone()


def grad(module: nn.Module, layer: str = "0") -> Tensor:
    found = module.get_submodule(layer).get_parameter("weight").grad
    assert found is not None
    return found


def same(a: Mapping[str, Mapping[str, Tensor]], b: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].keys() == b[k].keys() and all(torch.equal(a[k][p], b[k][p]) for p in a[k]) for k in a
    )


class RotatingPruner(Pruner):
    """Masks another filter after every step."""

    name: ClassVar[str] = "rotating"

    def calc_mask(self, wrapper: Wrapper) -> dict[str, Tensor]:
        mask = torch.ones(len(wrapper.weight))
        mask[self.steps % len(mask)] = 0
        return {"weight": mask.view(-1, 1, 1, 1), "bias": mask}


# -- plain steps ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_masked_weights_keep_their_values_until_export(
    kind: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    model = net()
    optimizer = kind(model.parameters(), lr=LR)  # type: ignore[call-arg]
    pruner = L1FilterPruner(model, CONFIG, optimizer, example_inputs=X)
    module = pruner.compress()
    before, masked = weight(module), gone(module)
    assert masked.any(3).any(2).any(1).sum() == 4
    for _ in range(3):
        step(module, optimizer)
        assert not bool(grad(module)[masked].any())
        assert bool((grad(module)[~masked] != 0).all())
    assert torch.equal(weight(module)[masked], before[masked])
    assert bool((weight(module)[~masked] != before[~masked]).all())
    pruner.export_model(tmp_path / "weights.pt")
    exported = torch.load(tmp_path / "weights.pt", weights_only=True)["0.weight"]
    assert not bool(exported[masked].any())
    assert torch.equal(exported[~masked], weight(module)[~masked])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_weight_decay_shrinks_what_is_masked_and_the_function_does_not_see_it(
    kind: type[torch.optim.Optimizer],
) -> None:
    model = net()
    optimizer = kind(model.parameters(), lr=LR, weight_decay=0.1)  # type: ignore[call-arg]
    module = L1FilterPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    before, masked = weight(module), gone(module)
    for _ in range(3):
        step(module, optimizer)
    expected = before[masked] * (1 - LR * 0.1) ** 3
    torch.testing.assert_close(weight(module)[masked], expected, rtol=1e-12, atol=0)
    output = module(X)
    with torch.no_grad():
        module.get_submodule("0").get_parameter("weight")[masked] = 7.0
    assert torch.equal(module(X), output)


def test_momentum_from_before_the_mask_goes_on_moving_what_is_masked() -> None:
    model = net()
    optimizer = sgd(model, momentum=0.9)
    module = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    step(module, optimizer)
    masked, first, before = gone(module), grad(module).clone(), weight(module)
    step(module, optimizer)
    step(module, optimizer)
    expected = before[masked] - LR * (0.9 + 0.81) * first[masked]
    torch.testing.assert_close(weight(module)[masked], expected, rtol=1e-12, atol=1e-15)


# -- what is measured in the loop ----------------------------------------------------------------------------
def test_two_half_batches_are_measured_as_one_batch() -> None:
    found = []
    for parts in (1, 2):
        model = net()
        optimizer = sgd(model)
        pruner = TaylorFOWeightFilterPruner(
            model, CONFIG, optimizer, example_inputs=X, statistics_batch_num=2
        )
        module = pruner.compress()
        for x, y in batches(2):
            optimizer.zero_grad()
            for inputs, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (cross_entropy(module(inputs), labels) / parts).backward()
            optimizer.step()
        found.append((get_masks(module), pruner.sums))
    assert found[0][0]
    assert same(found[0][0], found[1][0])
    for layer, values in found[0][1].items():
        torch.testing.assert_close(found[1][1][layer], values, rtol=1e-10, atol=1e-18)


def test_activations_of_two_half_batches_have_the_mean_of_the_batch() -> None:
    means = []
    for parts in (1, 2):
        model = net()
        pruner = ActivationMeanRankFilterPruner(model, CONFIG, sgd(model), example_inputs=X)
        module = pruner.compress()
        for x in X.chunk(parts):
            module(x).sum().backward()
        assert pruner.optimizer is not None
        pruner.optimizer.step()
        means.append(pruner.sums["0"] / pruner.counts["0"])
        expected = net().get_submodule("0")(X).relu().mean((0, 2, 3))
        torch.testing.assert_close(means[-1], expected.detach(), rtol=1e-12, atol=0)


def test_clipped_gradients_are_measured_as_the_optimizer_sees_them() -> None:
    sums = []
    for most in (float("inf"), 0.01):
        model = net()
        optimizer = sgd(model)
        pruner = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X)
        module = pruner.compress()
        module(X).square().mean().backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), most))
        optimizer.step()
        assert norm > 0.01
        sums.append((pruner.sums["0"], get_masks(module), norm))
    torch.testing.assert_close(sums[1][0], sums[0][0] * (0.01 / sums[0][2]) ** 2, rtol=1e-3, atol=0)
    assert same(sums[0][1], sums[1][1])


def test_validation_between_steps_is_not_measured() -> None:
    model = net()
    pruner = ActivationAPoZRankFilterPruner(
        model, CONFIG, sgd(model), example_inputs=X, statistics_batch_num=2
    )
    module = pruner.compress()
    with torch.no_grad():
        module(X)
    assert pruner.counts == {}
    module(X)
    assert pruner.counts == {"0": 1, "2": 1}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_is_measured_at_the_weights_it_first_saw(kind: type[torch.optim.Optimizer]) -> None:
    model, plain = net(), net()
    optimizer = kind(model.parameters(), lr=LR)  # type: ignore[call-arg]
    pruner = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X)
    module = pruner.compress()
    plain(X).square().mean().backward()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = module(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert pruner.steps == 1
    for layer, values in pruner.sums.items():
        expected = (weight(plain, layer) * grad(plain, layer)).square()
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-25)


# -- mixed precision -----------------------------------------------------------------------------------------
def test_autocast_runs_the_masked_layers_in_bfloat16() -> None:
    model = net().float()
    optimizer = sgd(model)
    module = L1FilterPruner(model, CONFIG, optimizer, example_inputs=X.float()).compress()
    masked, before = gone(module), weight(module)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = module(X.float())
            assert output.dtype is torch.bfloat16
            loss = output.float().square().mean()
        loss.backward()
        assert grad(module).dtype is torch.float32
        assert not bool(grad(module)[masked].any())
        assert bool(grad(module).isfinite().all())
        optimizer.step()
    assert torch.equal(weight(module)[masked], before[masked])
    small = fxcompress.speedup(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = relative_error((small(X.float()).float(),), (module(X.float()).float(),))
    assert error < 2**-6  # two roundings to the eight bits of bfloat16


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_scales_nothing_that_is_measured(fused: bool) -> None:
    sums = []
    for scale in (1.0, 1024.0):
        model = net().float()
        optimizer = sgd(model, fused=fused)
        pruner = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X.float())
        module = pruner.compress()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        scaler.scale(module(X.float()).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert pruner.steps == 1
        sums.append(pruner.sums)
    for layer, values in sums[0].items():
        torch.testing.assert_close(sums[1][layer], values, rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_is_none(fused: bool) -> None:
    model = net().float()
    optimizer = sgd(model, fused=fused)
    pruner = TaylorFOWeightFilterPruner(model, CONFIG, optimizer, example_inputs=X.float())
    module = pruner.compress()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(module(X.float()).sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert pruner.steps == 0
    assert pruner.sums == {}


# -- torch.compile -------------------------------------------------------------------------------------------
def test_masks_that_change_need_no_recompilation() -> None:
    model = net()
    optimizer = sgd(model)
    module = RotatingPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    counter = CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for index in range(3):
        assert gone(module).flatten(1).all(1).nonzero().flatten().tolist() == [index]
        assert torch.equal(compiled(X), module(X))
        step(compiled, optimizer)
    assert counter.frame_count == 1


@pytest.mark.parametrize("cls", [TaylorFOWeightFilterPruner, ActivationAPoZRankFilterPruner])
def test_masks_that_are_new_reach_the_compiled_module(cls: Any) -> None:
    model, twin = net(), net()
    found = []
    for owner in (model, twin):
        optimizer = sgd(owner)
        module = cls(owner, CONFIG, optimizer, example_inputs=X, statistics_batch_num=2).compress()
        compiled = torch.compile(module, backend="eager") if owner is model else module
        for _ in range(3):
            step(compiled, optimizer)
        assert gone(module).flatten(1).all(1).sum() == 4
        assert torch.equal(compiled(X), module(X))
        found.append(module)
    assert same(get_masks(found[0]), get_masks(found[1]))
    assert torch.equal(weight(found[0]), weight(found[1]))


class Normed(nn.Module):
    """LayerNorm over pruned features: its statistics run over the kept ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.gelu(self.norm(self.first(x))))  # type: ignore[no-any-return]


def test_restricted_statistics_compile_as_one_graph_and_run_in_bfloat16() -> None:
    model = ready(Normed())
    optimizer = sgd(model)
    x = image(4, 6)
    entry = {"sparsity": 0.5, "op_names": ["first"]}
    module = L1FilterPruner(model, [entry], optimizer, example_inputs=x).compress()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    step(compiled, optimizer, x)
    assert not bool(grad(module, "first")[gone(module, "first")].any())
    assert torch.equal(compiled(x), module(x))
    small, x = fxcompress.speedup(module).float(), x.float()
    assert small.get_parameter("norm.weight").shape == (6,)
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = relative_error(small(x).float(), module(x).float())
    assert error < 2**-6  # two roundings to the eight bits of bfloat16


@pytest.mark.slow
def test_inductor_trains_under_changing_masks() -> None:
    model = net()
    optimizer = sgd(model)
    module = RotatingPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    compiled = torch.compile(module)
    for _ in range(3):
        assert relative_error((compiled(X),), (module(X),)) < EXACT
        step(compiled, optimizer)


# -- several processes ---------------------------------------------------------------------------------------
def test_two_processes_choose_and_train_what_one_does(tmp_path: Path) -> None:
    alone, (first, second) = together(tmp_path, everything)
    assert alone.keys() == first.keys() == second.keys()
    for name, expected in alone.items():
        assert expected["masks"], name
        for found in (first[name], second[name]):
            assert same(found["masks"], expected["masks"]), name
            for key, value in expected.get("weights", {}).items():
                torch.testing.assert_close(found["weights"][key], value, rtol=1e-11, atol=1e-13)


# -- saving and going on -------------------------------------------------------------------------------------
def sigmoid_net(seed: int) -> nn.Module:
    """Its masked channels are zero only under a mask on the activation, too."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Conv2d(8, 6, 3), nn.ReLU())
    return ready(nn.Sequential(*layers, nn.Conv2d(6, 2, 1)), seed)


@pytest.mark.parametrize("entry", [{"sparsity": 0.5}, {"total_sparsity": 0.4}])
def test_a_state_dict_goes_into_a_fresh_masked_module(entry: dict[str, Any]) -> None:
    config = [{**entry, "op_names": ["0", "3"]}]
    module = fxcompress.compile(sigmoid_net(1), config, X)
    model = sigmoid_net(2)
    with torch.no_grad():
        for parameter in model.get_submodule("3").parameters():
            parameter.mul_(100)  # so that total_sparsity takes all from the other layer
    fresh = fxcompress.compile(model, config, X)
    assert not same(get_masks(fresh), get_masks(module))
    fresh.load_state_dict(module.state_dict())
    assert same({k: v for k, v in get_masks(fresh).items() if k in get_masks(module)}, get_masks(module))
    assert relative_error(run(fresh, (X,)), run(module, (X,))) <= EXACT
    assert relative_error(run(fxcompress.speedup(fresh), (X,)), run(module, (X,))) <= EXACT


def test_a_checkpoint_from_after_measuring_goes_into_a_pruner_that_has_not_measured(tmp_path: Path) -> None:
    model = sigmoid_net(1)
    optimizer = sgd(model)
    pruner = ActivationAPoZRankFilterPruner(model, CONFIG, optimizer, example_inputs=X)
    module = pruner.compress()
    step(module, optimizer)
    torch.save({"pruner": pruner.state_dict(), "model": module.state_dict()}, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    fresh = sigmoid_net(2)
    again = ActivationAPoZRankFilterPruner(fresh, CONFIG, sgd(fresh), example_inputs=X)
    resumed = again.compress()
    again.load_state_dict(state["pruner"])
    resumed.load_state_dict(state["model"])
    assert same(get_masks(resumed), get_masks(module))
    assert relative_error(run(resumed, (X,)), run(module, (X,))) <= EXACT
    assert again.steps == 1
    assert not any("_observer" in name for name, _ in resumed.named_modules())
    again.export_model(tmp_path / "weights.pt")


def test_measuring_goes_on_after_a_checkpoint() -> None:
    def pruner_of(model: nn.Module) -> TaylorFOWeightFilterPruner:
        return TaylorFOWeightFilterPruner(model, CONFIG, sgd(model), example_inputs=X, statistics_batch_num=3)

    whole, parts = pruner_of(net()), pruner_of(net())
    modules = whole.compress(), parts.compress()
    assert whole.optimizer is not None
    assert parts.optimizer is not None
    for module, optimizer in zip(modules, (whole.optimizer, parts.optimizer), strict=True):
        step(module, optimizer)
        step(module, optimizer)
    step(modules[0], whole.optimizer)
    resumed = pruner_of(net())
    module = resumed.compress()
    resumed.load_state_dict(parts.state_dict())
    module.load_state_dict(modules[1].state_dict())
    assert resumed.optimizer is not None
    assert get_masks(module) == {}
    step(module, resumed.optimizer)
    assert same(get_masks(module), get_masks(modules[0]))


def test_what_was_chosen_on_one_graph_is_chosen_again_on_one_that_has_masks() -> None:
    config = [{"sparsity": 0.5, "op_names": ["0", "3"]}]
    pruner, other = (L1FilterPruner(sigmoid_net(seed), config, example_inputs=X) for seed in (1, 2))
    module, fresh = pruner.compress(), other.compress()
    assert not same(get_masks(fresh), get_masks(module))
    for _ in range(2):
        other.load_state_dict(pruner.state_dict())
        assert same(get_masks(fresh), get_masks(module))
        fresh.load_state_dict(module.state_dict())
        assert relative_error(run(fresh, (X,)), run(module, (X,))) <= EXACT


def test_a_deep_copy_has_masks_and_weights_of_its_own() -> None:
    model = net()
    optimizer = sgd(model)
    module = L1FilterPruner(model, CONFIG, optimizer, example_inputs=X).compress()
    twin = copy.deepcopy(module)
    output = twin(X)
    step(module, optimizer)
    assert torch.equal(twin(X), output)
    assert not torch.equal(module(X), output)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(X), module(X))
    step(twin, sgd(twin))
    assert not bool(grad(twin)[gone(twin)].any())


def test_what_is_done_to_a_module_made_of_a_masked_one_leaves_that_one_alone() -> None:
    module = fxcompress.compile(net(), CONFIG, X)
    before = get_masks(module)
    again = fxcompress.compile(module, [{"sparsity": 0.9, "op_types": ["Conv2d"]}])
    assert gone(again).sum() > gone(module).sum()
    mask = torch.zeros(8, 1, 1, 1)
    mask[0] = 1
    fxcompress.speedup(module, masks={"0": {"weight": mask}})
    fxcompress.apply_masks(module, {"0": {"weight": mask}})
    assert same(get_masks(module), before)


# -- algorithms of one's own ---------------------------------------------------------------------------------
class CountingPruner(Pruner):
    """Masks the filter whose activation is smallest on average, by a collector; attributes as NNI's have."""

    name: ClassVar[str] = "counting"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.set_wrappers_attribute("total", torch.zeros(()))
        self.set_wrappers_attribute("calls", 0)

    def compress(self) -> CompiledModule:
        module = super().compress()
        self.collector = self.add_activation_collector(self.collect)
        return module

    def collect(self, wrapper: Any, inputs: Any, output: Tensor) -> None:
        wrapper.calls += 1
        wrapper.total = wrapper.total + output.detach().mean((0, 2, 3))

    def calc_mask(self, wrapper: Any) -> dict[str, Tensor] | None:
        if wrapper.calls == 0:
            return None
        mask = torch.ones(len(wrapper.weight))
        mask[wrapper.total.argmin()] = 0
        return {"weight_mask": mask.view(-1, 1, 1, 1), "bias_mask": mask}


def test_attributes_set_before_compress_and_collectors_work_together() -> None:
    model = net()
    optimizer = sgd(model)
    pruner = CountingPruner(model, CONFIG, optimizer, example_inputs=X)
    module = pruner.compress()
    assert get_masks(module) == {}
    lowest = int(model.get_submodule("0")(X).mean((0, 2, 3)).argmin())
    step(module, optimizer)
    assert [getattr(w, "calls", None) for w in pruner.wrappers] == [1, 1]
    assert gone(module).flatten(1).all(1).nonzero().flatten().tolist() == [lowest]
    pruner.remove_activation_collector(pruner.collector)
    step(module, optimizer)
    assert [getattr(w, "calls", None) for w in pruner.wrappers] == [1, 1]


def test_a_collector_sees_a_masked_layer_in_a_compiled_module() -> None:
    model = net()
    module = (pruner := RotatingPruner(model, CONFIG, sgd(model), example_inputs=X)).compress()
    seen: list[tuple[str, Tensor]] = []
    pruner.add_activation_collector(lambda w, inputs, output: seen.append((w.name, output.detach())))
    torch.compile(module, backend="eager")(X)
    assert [name for name, _ in seen] == ["0", "2"]
    assert not bool(seen[0][1][:, 0].any())
    assert bool(seen[0][1][:, 1:].any())


def test_a_pruner_that_changes_masks_by_the_step_goes_on_after_a_checkpoint() -> None:
    model, fresh = net(), net(2)
    optimizers = sgd(model), sgd(fresh)
    pruners = [
        RotatingPruner(m, CONFIG, o, example_inputs=X)
        for m, o in zip((model, fresh), optimizers, strict=True)
    ]
    module, resumed = (pruner.compress() for pruner in pruners)
    step(module, optimizers[0])
    step(module, optimizers[0])
    pruners[1].load_state_dict(pruners[0].state_dict())
    resumed.load_state_dict(module.state_dict())
    assert torch.equal(resumed(X), module(X))
    step(module, optimizers[0])
    step(resumed, optimizers[1])
    assert same(get_masks(resumed), get_masks(module))
    assert gone(resumed).flatten(1).all(1).nonzero().flatten().tolist() == [3]


def test_data_is_run_in_eval_mode_for_collectors() -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X, data=[X, (X[:2], torch.zeros(2))])
    module = pruner.compress()
    seen: list[tuple[int, bool, bool]] = []
    pruner.add_activation_collector(
        lambda w, inputs, output: seen.append((len(output), output.requires_grad, w.module.training))
    )
    pruner.run_data()
    assert seen == [(4, False, False)] * 2 + [(2, False, False)] * 2
    assert module.training
    other = L1FilterPruner(net(), CONFIG, example_inputs=X)
    other.compress()
    with pytest.raises(FxcompressError, match=r"run_data: expected data=.*fxcompress\.compile"):
        other.run_data()


# -- mistakes ------------------------------------------------------------------------------------------------
def giving(given: Any) -> Pruner:
    class Giving(Pruner):
        name: ClassVar[str] = "giving"

        def calc_mask(self, wrapper: Wrapper) -> Any:
            return given

    return Giving(net(), CONFIG, example_inputs=X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": torch.ones(8)}, r"Giving\.calc_mask\('0'\): .*\('weight', 'bias'\), got 'scale'"),
        (
            {"weight": torch.ones(9, 1, 1, 1)},
            r"'0'\)\['weight'\]: .*\[8, 3, 3, 3\] or one that broadcasts to it, got \[9, 1, 1, 1\]",
        ),
        ({"bias_mask": torch.full((8,), 0.5)}, r"'0'\)\['bias_mask'\]: .*0 and 1, got 8 other .*as 0\.5"),
        ({"bias": torch.full((8,), torch.nan)}, r"'0'\)\['bias'\]: .*0 and 1, got 8 other .*as nan"),
        ({"weight": [1, 0]}, r"'0'\)\['weight'\]: .*a tensor of 0 and 1, got list"),
        (torch.ones(8), r"'0'\): expected a dict such as \{'weight': mask\}, or None, got Tensor"),
    ],
)
def test_what_calc_mask_gets_wrong_is_named_with_the_layer(given: Any, message: str) -> None:
    with pytest.raises(FxcompressError, match=message):
        giving(given).compress()


def test_a_masker_is_named_where_it_gets_something_wrong() -> None:
    class Wrong(WeightMasker):
        def calc_mask(self, sparsity: float, wrapper: Wrapper, wrapper_idx: int | None = None) -> Any:
            return {"weight_mask": torch.ones(2)}

    class WrongPruner(OneshotPruner):
        name: ClassVar[str] = "wrong"
        masker_class = Wrong

    with pytest.raises(FxcompressError, match=r"Wrong\.calc_mask\('0'\)\['weight_mask'\]: expected a mask"):
        WrongPruner(net(), CONFIG, example_inputs=X).compress()


@pytest.mark.parametrize(
    "act",
    [
        lambda p: p.step(),
        lambda p: p.update_mask(),
        lambda p: p.summary(),
        lambda p: p.use_optimizer(sgd(p.model)),
        lambda p: p.add_activation_collector(print),
        lambda p: p.load_state_dict(p.state_dict()),
        lambda p: p.export_model("weights.pt"),
    ],
)
@pytest.mark.parametrize("cls", [L1FilterPruner, ActivationAPoZRankFilterPruner])
def test_before_compress_everything_asks_for_it(cls: Any, act: Any) -> None:
    model = net()
    with pytest.raises(FxcompressError, match=r"call compress\(\) first"):
        act(cls(model, CONFIG, sgd(model), example_inputs=X))


def test_compress_is_called_once() -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    pruner.compress()
    with pytest.raises(FxcompressError, match=r"compress: called a second time.*update_mask\(\)"):
        pruner.compress()


def test_a_missing_attribute_of_a_wrapper_names_layer_and_remedy() -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    pruner.compress()
    with pytest.raises(AttributeError, match=r"layer '0' has no 'total'.*set_wrappers_attribute\('total'"):
        pruner.wrappers[0].total  # noqa: B018
    assert copy.copy(pruner.wrappers[0]).name == "0"


def test_an_unknown_collector_is_told_those_there_are() -> None:
    pruner = L1FilterPruner(net(), CONFIG, example_inputs=X)
    pruner.compress()
    identity = pruner.add_activation_collector(print)
    with pytest.raises(FxcompressError, match=rf"collector 7: no such id; in use: {identity}"):
        pruner.remove_activation_collector(7)


def test_a_collector_on_a_layer_that_is_never_called_is_refused() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.layer.weight)

    pruner = giving(None).__class__(
        Functional(), [{"sparsity": 0.5, "op_types": ["Linear"]}], example_inputs=torch.randn(2, 6)
    )
    pruner.compress()
    with pytest.raises(FxcompressError, match=r"weight of 'layer' without calling the layer.*exclude it"):
        pruner.add_activation_collector(print)


def test_an_optimizer_of_another_model_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"L1FilterPruner holds no parameter .*layers '0', '2'\)"):
        L1FilterPruner(net(), CONFIG, sgd(net()), example_inputs=X).compress()
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        L1FilterPruner(model, CONFIG, sgd(model.get_submodule("5")), example_inputs=X).compress()


def test_the_optimizer_may_come_later_and_be_replaced() -> None:
    model = net()
    pruner = TaylorFOWeightFilterPruner(model, CONFIG, example_inputs=X, statistics_batch_num=2)
    module = pruner.compress()
    old, new = sgd(model), sgd(model)
    pruner.use_optimizer(old)
    pruner.use_optimizer(new)
    step(module, old)
    assert pruner.steps == 0
    step(module, new)
    step(module, new)
    assert gone(module).flatten(1).all(1).sum() == 4


def test_nothing_to_measure_on_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data=\.\.\. and loss_fn=\.\.\., got none.*an optimizer.*later"):
        TaylorFOWeightFilterPruner(net(), CONFIG, example_inputs=X)


def test_steps_without_gradients_or_forward_passes_are_named(tmp_path: Path) -> None:
    for cls in (TaylorFOWeightFilterPruner, ActivationAPoZRankFilterPruner):
        model = net()
        optimizer = sgd(model)
        pruner: Any = cls(model, CONFIG, optimizer, example_inputs=X, statistics_batch_num=2)
        pruner.compress()
        with pytest.raises(FxcompressError, match=r"nothing has been measured yet.* 2 steps"):
            pruner.update_mask()
        optimizer.step()
        with pytest.raises(FxcompressError, match=r"^0: pruner .* measured nothing of it in 1 steps"):
            pruner.update_mask()
        with pytest.raises(FxcompressError, match="1 of 2 steps of training have been measured"):
            pruner.export_model(tmp_path / "weights.pt")
        with pytest.raises(FxcompressError, match=r"^0: pruner .* measured nothing of it in 2 steps"):
            optimizer.step()
