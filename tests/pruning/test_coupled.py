"""Coupled layers share one mask, so that everything masked can be removed; and what the notes say."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import get_masks
from tests.helpers import Function, check_exact, compiled, image, ready, relative_error, run, weight_shape


def gone(module: CompiledModule, layer: str, parameter: str = "weight") -> list[int]:
    """The masked filters of a layer."""
    mask = get_masks(module)[layer][parameter]
    return (
        torch.nonzero((mask.flatten(1) if mask.dim() > 1 else mask[:, None]).eq(0).all(1)).flatten().tolist()
    )


def residual() -> nn.Module:
    return Function(
        lambda m, x: m.head(m.a(x) + m.c(torch.relu(m.b(m.a(x))))),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), c=nn.Conv2d(6, 8, 1), head=nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def depthwise() -> nn.Module:
    return Function(
        lambda m, x: m.head(F.relu6(m.norm(m.b(m.a(x))))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, groups=8), norm=nn.BatchNorm2d(8), head=nn.Conv2d(8, 2, 1),
    )  # fmt: skip


def test_both_sides_of_an_addition_lose_the_same_filters() -> None:
    module = compiled(residual(), image(2, 3, 6, 6), exclude_op_names=["head"])
    assert gone(module, "a") == gone(module, "c")
    assert len(gone(module, "a")) == 4
    assert len(gone(module, "b")) == 3


def test_a_depthwise_convolution_and_its_norm_follow_the_layer_before() -> None:
    module = compiled(depthwise(), image(2, 3, 6, 6), exclude_op_names=["head"])
    assert gone(module, "a") == gone(module, "b") == gone(module, "norm")
    assert gone(module, "norm", "bias") == gone(module, "norm")
    small = fxcompress.speedup(module)
    assert small.b.groups == 4  # type: ignore[union-attr]


def test_coupled_filters_are_ranked_by_the_sum_of_their_scores() -> None:
    model = Function(
        lambda m, x: m.head(m.a(x) + m.b(x)), a=nn.Linear(2, 3), b=nn.Linear(2, 3), head=nn.Linear(3, 2)
    )
    with torch.no_grad():
        model.get_parameter("a.weight").copy_(
            torch.tensor([[1.0, 0], [2, 0], [3, 0]])
        )  # over the mean: 0.5, 1, 1.5
        model.get_parameter("b.weight").copy_(torch.tensor([[30.0, 0], [10, 0], [20, 0]]))  # 1.5, 0.5, 1
    module = fxcompress.compile(model, [{"sparsity": 0.34, "exclude_op_names": ["head"]}], torch.randn(2, 2))
    assert gone(module, "a") == gone(module, "b") == [1]  # 2, 1.5, 2.5


def grouped(groups: int, width: int) -> nn.Module:
    return Function(
        lambda m, x: m.head(m.b(m.a(x))),
        a=nn.Conv2d(3, width, 1), b=nn.Conv2d(width, width, 3, groups=groups), head=nn.Conv2d(width, 2, 1),
    )  # fmt: skip


@pytest.mark.parametrize("groups", [2, 4])
def test_every_group_of_wide_groups_loses_the_same_channels(groups: int) -> None:
    module = compiled(grouped(groups, 8 * groups), image(2, 3, 5, 5), exclude_op_names=["head"])
    for layer in ("a", "b"):
        inside = {k % 8 for k in gone(module, layer)}
        assert len(gone(module, layer)) == 4 * groups
        assert len(inside) == 4, f"{layer} loses {gone(module, layer)}"
    assert weight_shape(fxcompress.speedup(module), "b") == (4 * groups, 4, 3, 3)


def test_of_many_narrow_groups_whole_ones_go() -> None:
    module = compiled(grouped(8, 16), image(2, 3, 5, 5), exclude_op_names=["head"])
    assert {k // 2 for k in gone(module, "a")} == {k // 2 for k in gone(module, "b")}
    small = fxcompress.speedup(module)
    assert weight_shape(small, "b") == (8, 2, 3, 3)
    assert small.b.groups == 4  # type: ignore[union-attr]


def test_layers_that_are_concatenated_are_ranked_on_their_own() -> None:
    model = Function(
        lambda m, x: m.head(torch.relu(m.norm(torch.cat([m.a(x), m.b(x)], 1)))),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(10), head=nn.Conv2d(10, 2, 1),
    )  # fmt: skip
    module = compiled(model, image(2, 3, 4, 4), exclude_op_names=["head"])
    assert gone(module, "norm") == gone(module, "a") + [6 + k for k in gone(module, "b")]
    assert (len(gone(module, "a")), len(gone(module, "b"))) == (3, 2)


def test_squeeze_and_excitation_goes_with_the_channels_it_scales() -> None:
    model = Function(
        lambda m, x: m.head(m.a(x) * torch.sigmoid(m.up(torch.relu(m.down(m.a(x).mean((2, 3), True)))))),
        a=nn.Conv2d(3, 8, 1), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), head=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    module = compiled(model, image(2, 3, 4, 4), exclude_op_names=["head"])
    assert gone(module, "a") == gone(module, "up")
    small = fxcompress.speedup(module)
    assert weight_shape(small, "up") == (4, 2, 1, 1)
    assert weight_shape(small, "head") == (2, 4, 1, 1)


@pytest.mark.parametrize("make", [residual, depthwise])
def test_everything_dependency_aware_masks_cover_is_removed(make: Callable[[], nn.Module]) -> None:
    module = compiled(make(), image(2, 3, 6, 6), exclude_op_names=["head"])
    small = fxcompress.speedup(module)
    for layer, tensors in get_masks(module).items():
        rows = tensors["weight"].shape[0]
        assert small.get_submodule(layer).get_parameter("weight").shape[0] == rows - len(gone(module, layer))
    assert not small.report.kept


def test_masks_of_single_layers_need_not_agree() -> None:
    module = fxcompress.compile(
        residual(),
        [{"sparsity": 0.5, "op_names": ["a", "c"]}],
        torch.randn(2, 3, 6, 6),
        dependency_aware=False,
    )
    assert {"weight", "bias"} == set(get_masks(module)["a"])
    assert gone(module, "a") != gone(module, "c")
    small = fxcompress.speedup(module)
    assert relative_error(run(small, module.example_inputs[0]), run(module, module.example_inputs[0])) < 1e-4


def test_heads_merged_with_the_batch_and_taken_apart_again_are_the_same_heads() -> None:
    """The layer that mixes them is not selected: what it reads of a pruned head is masked."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k = (layer(x).view(x.shape[0], x.shape[1], 4, 3).transpose(1, 2) for layer in (m.q, m.k))
        scores = q.flatten(0, 1) @ k.flatten(0, 1).transpose(1, 2)
        return m.mix(torch.sigmoid(scores).view(x.shape[0], 4, x.shape[1], -1))  # type: ignore[no-any-return]

    model = Function(forward, q=nn.Linear(6, 12), k=nn.Linear(6, 12), mix=nn.Conv2d(4, 3, 1))
    inputs = image(3, 5, 6)
    module = compiled(model, inputs, exclude_op_names=["mix"])
    assert len(gone(module, "q")) == 6
    small = fxcompress.speedup(module, inputs)
    assert weight_shape(small, "q") == (6, 6)


def test_an_unbiased_variance_keeps_two_channels() -> None:
    """That of one channel is no number."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.head((y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1e-3).sqrt())  # type: ignore[no-any-return]

    model = Function(forward, a=nn.Linear(4, 6), head=nn.Linear(6, 2))
    for key in ("sparsity", "total_sparsity"):
        config = [{key: 0.9, "exclude_op_names": ["head"]}]
        module = fxcompress.compile(ready(model), config, image(3, 4))
        assert len(gone(module, "a")) == 4
        assert bool(module(image(3, 4)).isfinite().all())


def test_statistics_of_a_normalization_run_over_the_kept_channels() -> None:
    model = Function(
        lambda m, x: m.head(torch.relu(m.norm(m.a(x)))),
        a=nn.Linear(4, 8),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 2),
    )
    module = compiled(model, image(3, 4), exclude_op_names=["head"])
    kept = [k for k in range(8) if k not in gone(module, "a")]
    rows = (image(3, 4) @ module.a.weight.T + module.a.bias)[:, kept]  # type: ignore[union-attr, operator]
    norm = module.norm
    assert isinstance(norm, nn.LayerNorm)
    y = torch.relu(F.layer_norm(rows, (4,), norm.weight[kept], norm.bias[kept], norm.eps))
    head = module.head
    assert isinstance(head, nn.Linear)
    expected = y @ head.weight[:, kept].T + head.bias
    assert relative_error(run(module, (image(3, 4),)), expected.detach()) < 1e-9
    check_exact(fxcompress.speedup(module), module, image(3, 4))


def test_all_coupled_layers_must_be_selected_and_the_note_says_which_is_not() -> None:
    with pytest.warns(UserWarning, match=r"a: not pruned: .*tied to those of 'c', which the config does not"):
        module = compiled(residual(), image(2, 3, 6, 6), op_names=["a"])
    assert get_masks(module) == {}
    assert any("'c'" in note for note in module.notes)


def test_a_layer_that_makes_the_output_is_not_pruned_and_the_note_says_so() -> None:
    with pytest.warns(UserWarning, match="head: not pruned: .*model output"):
        module = compiled(residual(), image(2, 3, 6, 6))
    assert "head" not in get_masks(module)


def test_a_layer_outside_the_forward_pass_is_named() -> None:
    model = residual()
    model.add_module("spare", nn.Conv2d(3, 4, 1))
    with pytest.warns(UserWarning, match="spare: not pruned: its weight takes no part"):
        compiled(model, image(2, 3, 6, 6), op_names=["spare", "b"])


def test_what_can_be_pruned_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(residual(), image(2, 3, 6, 6), exclude_op_names=["head"])


def stack(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("aware", [True, False])
def test_total_sparsity_is_a_share_of_all_weights_of_the_entry(aware: bool) -> None:
    model = stack(6, 10, 20, 3)
    entry = {"total_sparsity": 0.5, "op_names": ["0", "2"]}
    module = fxcompress.compile(model, [entry], torch.randn(2, 6), dependency_aware=aware)
    weights = {name: masks["weight"] for name, masks in get_masks(module).items()}
    masked = sum(int((m == 0).sum()) for m in weights.values())
    total = 6 * 10 + 10 * 20
    assert (
        total * 0.5 - 10 <= masked <= total * 0.5
    )  # the last filter that does not fit has at most 10 weights


@pytest.mark.parametrize("aware", [True, False])
def test_max_sparsity_per_layer_limits_every_layer(aware: bool) -> None:
    model = stack(6, 10, 20, 3)
    with torch.no_grad():
        model[0].get_parameter("weight").mul_(1e-3)
    entry = {"total_sparsity": 0.5, "max_sparsity_per_layer": 0.55, "op_names": ["0", "2"]}
    module = fxcompress.compile(model, [entry], torch.randn(2, 6), dependency_aware=aware)
    for name, masks in get_masks(module).items():
        rows = (masks["weight"] == 0).all(1)
        assert int(rows.sum()) <= math.floor(0.55 * len(rows)), name


def test_total_sparsity_of_level_ranks_all_weights_together() -> None:
    model = stack(4, 5, 6)
    with torch.no_grad():
        model[0].get_parameter("weight").uniform_(1.0, 2.0)
        model[2].get_parameter("weight").uniform_(0.1, 0.2)
    entry = {"total_sparsity": 0.6, "pruner": "level", "op_types": ["Linear"]}
    masks = get_masks(fxcompress.compile(model, [entry], torch.randn(2, 4)))
    assert int((masks["2"]["weight"] == 0).sum()) == 30  # floor(0.6 · 50): exactly all of the small ones
    assert bool(masks["0"]["weight"].all())
    masks = get_masks(
        fxcompress.compile(model, [{**entry, "max_sparsity_per_layer": 0.7}], torch.randn(2, 4))
    )
    assert int((masks["2"]["weight"] == 0).sum()) == 21
    assert int((masks["0"]["weight"] == 0).sum()) == 9


def test_masked_units_are_zero_in_train_mode_too() -> None:
    module = compiled(depthwise(), image(2, 3, 6, 6), exclude_op_names=["head"])
    seen: list[Tensor] = []
    module.norm.register_forward_hook(lambda _m, _a, out: seen.append(out))  # type: ignore[union-attr]
    for mode in (True, False):
        module.train(mode)(image(2, 3, 6, 6))
        assert bool((seen[-1][:, gone(module, "norm")] == 0).all())


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_a_recurrent_layer_reads_is_masked_where_pruned_channels_are_not_zero(
    make: Callable[..., nn.Module],
) -> None:
    """Found by random networks (seeds 12991 and 13807)."""
    model = Function(
        lambda m, x: m.head(m.rnn(m.a(x) + x.mean(-1, keepdim=True))[0]),
        a=nn.Linear(5, 8), rnn=make(8, 6, batch_first=True), head=nn.Linear(6, 2),
    )  # fmt: skip
    x = image(2, 4, 5)
    module = compiled(model, x, exclude_op_names=["head"])
    assert len(gone(module, "a")) == 4
    small = fxcompress.speedup(module)
    assert weight_shape(small, "a") == (4, 5)
    check_exact(small, module, x)
