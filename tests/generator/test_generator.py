"""The generator itself: every kind is reachable, numbers are nowhere plain, failures shrink and paste."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.comparing import run
from tests.generator import KINDS, Network, random_case, random_network, randomize, render
from tests.generator.masks import make_masks
from tests.generator.pruning import prunable, random_pruning
from tests.generator.reduction import Case, reduce
from tests.generator.script import script
from tests.generator.spec import Spec, Step, random_spec

SAMPLE = range(40)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tensors are tiny


def sample_with(kind: str) -> Network:
    """A short network in which `kind` takes effect and is the last step."""
    rng = random.Random(kind)
    for _ in range(200):
        spec = random_spec(rng)
        network = render(replace(spec, steps=(*spec.steps[:3], Step(kind, 0, spec.head))), seed=1)
        if network.kinds[-1:] == (kind,):
            return network
    raise LookupError(f"no network takes a step of kind {kind!r}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_take_effect_and_runs_at_any_batch_size(kind: str) -> None:
    network = sample_with(kind)
    model = network.model()
    for batch in (2, 4):
        for leaf in torch.utils._pytree.tree_leaves(run(model, network.inputs(batch=batch))):
            assert leaf.shape[0] == batch
            assert leaf.dtype == torch.float64
            assert bool(leaf.isfinite().all())


@pytest.mark.parametrize("seed", SAMPLE)
def test_equal_seeds_give_equal_networks_and_numbers(seed: int) -> None:
    first, second = random_network(seed), random_network(seed)
    assert first.source == second.source
    state = second.model().state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.model().state_dict().items())


def test_randomized_numbers_are_nowhere_fresh() -> None:
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU()), seed=3)
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        assert tensor.dtype == torch.float64
        assert not bool(((tensor == 0) | (tensor == 1) | (tensor == 0.25)).any()), name
    variance = model.state_dict()["1.running_var"]
    assert bool(((variance >= 0.5) & (variance <= 1.5)).all())


def test_sources_hold_no_line_whose_result_is_unused() -> None:
    for seed in SAMPLE:
        network = random_network(seed)
        body = network.source.partition("def forward")[2]
        for name, _ in network.build().named_children():
            assert f"self.{name}" in body or f"self.{name}.weight" in network.source, network.source


def test_zero_knobs_mean_a_plain_convnet() -> None:
    network = render(Spec((), (Step("conv"),), ()))
    assert [type(module).__name__ for module in network.build().children()] == ["Conv2d", "Conv2d", "Linear"]


def test_start_knobs_reach_token_ids_and_keyword_inputs() -> None:
    network = render(Spec((8, 3), (Step("self_attention"),), ()), seed=2)
    (argument,) = network.arguments
    assert network.flags >= {"keyword inputs"}
    assert (argument.tokens, argument.vocabulary) == (False, 11)
    inputs = network.inputs(batch=4, grow=2)
    assert isinstance(inputs, dict)
    ids = inputs[argument.name]
    assert ids.dtype == torch.int64
    assert ids.shape == (4, argument.shape[0] + 2)
    assert int(ids.max()) < 11
    assert run(network.model(), inputs).shape == (4, 3)


def test_a_kind_of_the_other_layout_reads_a_converted_value() -> None:
    network = render(Spec((), tuple(map(Step, ("conv", "mlp", "max_pool", "token_norm"))), ()))
    assert network.kinds == ("conv", "mlp", "max_pool", "token_norm")
    assert "F.gelu" in network.source


def test_prunings_name_layers_of_the_network() -> None:
    for seed in SAMPLE:
        network, pruning = random_case(seed)
        layers = prunable(network.build())
        names = {name for entry in pruning.config for name in entry.get("op_names", ())} | set(pruning.masks)
        assert names <= set(layers)
        assert bool(pruning.config) + bool(pruning.masks) == bool(layers)


def test_masks_follow_their_plan() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    masks = make_masks(model, {"0": {"rows": [1], "columns": [0], "bias": [2]}})
    assert masks["0"]["weight"].tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert masks["0"]["bias"].tolist() == [1, 1, 0]


def test_reduction_drops_every_step_that_does_not_matter() -> None:
    rng = random.Random(5)
    spec = random_spec(rng)
    spec = replace(spec, steps=(*spec.steps[:4], Step("gram", 3, (7, 8, 9)), *spec.steps[4:]))

    def fails(case: Case) -> bool:
        return any(step.kind == "gram" for step in case[0].steps)

    smallest, knobs = reduce((spec, (5, 0, 7)), fails, seconds=20)
    assert smallest.steps == (Step("gram"),)
    assert not any(smallest.start)
    assert not any(knobs)


def test_scripts_are_valid_python_with_the_same_network() -> None:
    for seed in range(10):
        network, pruning = random_case(seed)
        text = script(network, pruning, "a remark\nof two lines")
        assert text.startswith("# a remark\n# of two lines\n")
        scope: dict[str, object] = {"__name__": "repro"}
        definitions, _, _ = text.partition("\nmodel = randomize(")
        exec(compile(definitions.replace("import fxcompress\n", ""), "repro", "exec"), scope)
        assert random_pruning(network, ()).dependency_aware
        assert scope["Network"] is not None
