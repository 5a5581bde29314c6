"""What each entry selects, who wins, and every way to select nothing."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fxcompress.config.registry import PRUNABLE, known_pruners
from fxcompress.config.schema import parse
from fxcompress.config.select import Deferred, Selection, TotalGroup, select
from fxcompress.config.targets import Target, targets_of_model
from fxcompress.config.values import PerType
from fxcompress.errors import ConfigError

SUPPORTED = ", ".join(sorted(PRUNABLE))


class PaddedConv(nn.Conv2d):
    """A subclass, as timm's Conv2dSame."""


class Block(nn.Module):
    """Two convolutions, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = PaddedConv(4, 4, 3)


class Net(nn.Module):
    """stem, layer1.{0,1}.{conv1,bn1,relu,conv2}, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(4, 10)


CONVS = ["stem", *(f"layer1.{block}.conv{i}" for block in (0, 1) for i in (1, 2))]
ADD = Target("add_1", ("add",), functional=True)


def run(*config: dict[str, Any], captured: bool = True, extra: tuple[Target, ...] = ()) -> Selection:
    targets = [*targets_of_model(Net()), *extra]
    return select(parse(list(config)), targets, known_pruners(), captured=captured)


def sparsities(*config: dict[str, Any]) -> dict[str, float | None]:
    return {name: settings.sparsity for name, settings in run(*config).pruning.items()}


def message(*config: dict[str, Any], captured: bool = True) -> str:
    with pytest.raises(ConfigError) as error:
        run(*config, captured=captured)
    return str(error.value)


def test_without_a_scope_everything_the_pruner_supports_is_selected() -> None:
    expected = dict.fromkeys([*CONVS, "fc"], 0.5)
    assert sparsities({"sparsity": 0.5}) == expected
    assert sparsities({"op_types": ["default"], "sparsity": 0.5}) == expected


def test_default_is_what_the_given_mapping_says() -> None:
    entries = parse([{"sparsity": 0.5}, {"pruner": "rows", "sparsity": 0.2}], pruners=["rows"])
    supported = {"l1": frozenset({"Conv2d"}), "rows": frozenset({"Linear"})}
    pruning = select(entries, targets_of_model(Net()), supported).pruning
    assert {name: s.pruner for name, s in pruning.items()} == {**dict.fromkeys(CONVS, "l1"), "fc": "rows"}


def test_default_of_an_entry_without_pruner_follows_the_pruner_already_in_force() -> None:
    entries = parse([{"pruner": "rows", "sparsity": 0.2}, {"sparsity": 0.4}], pruners=["rows"])
    supported = {"l1": frozenset({"Conv2d"}), "rows": frozenset({"Linear"})}
    pruning = select(entries, targets_of_model(Net()), supported).pruning
    assert (pruning["fc"].pruner, pruning["fc"].sparsity) == ("rows", 0.4)
    assert (pruning["stem"].pruner, pruning["stem"].sparsity) == ("l1", 0.4)


def test_a_subclass_is_selected_by_its_own_and_by_its_torch_type() -> None:
    subclass = ["layer1.0.conv2", "layer1.1.conv2"]
    assert list(sparsities({"op_types": ["PaddedConv"], "sparsity": 0.5})) == subclass
    assert list(sparsities({"op_types": ["Conv2d"], "sparsity": 0.5})) == CONVS


def test_globs_and_expressions_skip_what_the_pruner_does_not_support() -> None:
    first = ["layer1.0.conv1", "layer1.0.conv2"]
    assert list(sparsities({"op_names": ["layer1.0.*"], "sparsity": 0.5})) == first
    assert list(sparsities({"op_names_re": [r"^layer1\.0\."], "sparsity": 0.5})) == first
    assert list(sparsities({"op_names_re": ["0.conv"], "op_names": ["fc"], "sparsity": 0.5})) == [
        *first,
        "fc",
    ]


def test_names_and_types_of_an_entry_narrow_each_other() -> None:
    assert list(sparsities({"op_types": ["Conv2d"], "op_names": ["layer1.0.*"], "sparsity": 0.5})) == [
        "layer1.0.conv1",
        "layer1.0.conv2",
    ]


@pytest.mark.parametrize(
    "exclusion",
    [
        {"exclude_op_names": ["layer1.*"]},
        {"exclude_op_names_re": ["conv[12]$"]},
        {"exclude_op_types": ["PaddedConv"], "exclude_op_names": ["*conv1"]},
    ],
)
def test_exclude_keys_narrow_their_own_entry_only(exclusion: dict[str, Any]) -> None:
    assert sparsities({"sparsity": 0.5, **exclusion}) == {"stem": 0.5, "fc": 0.5}
    both = sparsities({"sparsity": 0.2}, {"sparsity": 0.5, **exclusion})
    assert both == {**dict.fromkeys(CONVS, 0.2), "stem": 0.5, "fc": 0.5}


def test_the_later_entry_wins_key_by_key_and_sources_say_who_gave_what() -> None:
    settings = run(
        {"pruner": "fpgm", "sparsity": 0.5, "granularity": "out_channel"},
        {"op_names": ["stem"], "sparsity": 0.2},
        {"op_types": ["Conv2d"], "granularity": None},
    ).pruning
    stem = settings["stem"]
    assert (stem.pruner, stem.sparsity, stem.granularity) == ("fpgm", 0.2, "default")
    assert stem.sources == {"pruner": 0, "sparsity": 1, "granularity": 2}
    assert settings["fc"].sources == {"pruner": 0, "sparsity": 0, "granularity": 0}


def test_pruning_and_quantization_do_not_disturb_each_other() -> None:
    selection = run(
        {"op_types": ["Conv2d"], "sparsity": 0.5},
        {"op_names": ["stem", "fc"], "quant_bits": {"weight": 4}, "quantizer": "lsq"},
        {"op_names": ["stem"], "sparsity": 0.2},
        {"op_names": ["stem"], "quant_bits": 6},
    )
    assert list(selection.pruning) == CONVS
    assert selection.pruning["stem"].sparsity == 0.2
    assert list(selection.quantization) == ["stem", "fc"]
    stem, fc = selection.quantization["stem"], selection.quantization["fc"]
    assert (stem.quantizer, stem.quant_bits, stem.sources) == (
        "lsq",
        PerType(6, 6, 6),
        {"quantizer": 1, "quant_bits": 3},
    )
    assert fc.quant_bits == PerType(weight=4, input=8, output=8)
    assert fc.quant_dtype == PerType("int", "uint", "uint")


def test_exclude_drops_both_kinds_and_a_later_entry_selects_again_from_scratch() -> None:
    selection = run(
        {"pruner": "fpgm", "sparsity": 0.5, "quant_bits": 8},
        {"exclude": True, "op_types": ["Conv2d"], "exclude_op_names": ["layer1.0.*"]},
        {"op_names": ["stem"], "sparsity": 0.3},
    )
    assert list(selection.pruning) == ["stem", "layer1.0.conv1", "layer1.0.conv2", "fc"]
    assert list(selection.quantization) == ["layer1.0.conv1", "layer1.0.conv2", "fc"]
    assert selection.pruning["stem"].pruner == "l1"
    assert selection.pruning["stem"].sources == {"sparsity": 2}
    assert selection.unselected["layer1.1.conv1"] == "excluded by config_list[1]"


def test_layers_with_one_total_sparsity_are_grouped_by_entry() -> None:
    selection = run(
        {"total_sparsity": 0.5, "max_sparsity_per_layer": 0.9},
        {"op_names": ["layer1.1.*"], "total_sparsity": 0.3},
        {"op_names": ["fc"], "sparsity": 0.1},
    )
    assert selection.total_groups == (
        TotalGroup(0, 0.5, ("stem", "layer1.0.conv1", "layer1.0.conv2")),
        TotalGroup(1, 0.3, ("layer1.1.conv1", "layer1.1.conv2")),
    )
    fc = selection.pruning["fc"]
    assert (fc.sparsity, fc.total_sparsity) == (0.1, None)
    assert selection.pruning["stem"].max_sparsity_per_layer == 0.9


def test_a_total_sparsity_replaces_an_earlier_sparsity() -> None:
    fc = run({"sparsity": 0.1}, {"total_sparsity": 0.3}).pruning["fc"]
    assert (fc.sparsity, fc.total_sparsity, fc.sources) == (None, 0.3, {"total_sparsity": 1})


def test_unselected_layers_have_a_reason() -> None:
    unselected = run({"op_types": ["Conv2d"], "op_names_re": ["layer1"], "sparsity": 0.5}).unselected
    assert unselected["stem"] == "in no entry's scope"
    skipped = run({"sparsity": 0.5, "exclude_op_names": ["fc"]}).unselected
    assert skipped["fc"] == "config_list[0]: exclude_op_names"
    assert skipped["layer1.0.bn1"] == "pruner 'l1' does not support BatchNorm2d"
    lacking = run({"pruner": "fpgm"}, {"op_names": ["stem"], "sparsity": 0.5})
    assert list(lacking.pruning) == ["stem"]
    assert lacking.unselected["fc"] == "got pruner of config_list[0], but no sparsity"


def test_a_layer_held_twice_answers_to_both_names() -> None:
    model = Net()
    model.tied = model.fc
    selection = select(
        parse([{"op_names": ["tied"], "sparsity": 0.5}]), targets_of_model(model), known_pruners()
    )
    assert list(selection.pruning) == ["fc"]


NOTHING: list[tuple[dict[str, Any], str]] = [
    (
        {"op_names": ["layer1.0.conv3"]},
        "op_names: 'layer1.0.conv3' matches nothing; did you mean 'layer1.0.conv2'?",
    ),
    (
        {"op_names": ["layer1.0"]},
        "op_names: 'layer1.0' matches nothing: it is a container; did you mean 'layer1.0.*'?",
    ),
    ({"op_names": ["layr1.*"]}, "op_names: 'layr1.*' matches nothing; did you mean 'layer1.*'?"),
    (
        {"op_names": ["zzz"]},
        "op_names: 'zzz' matches nothing; give a name of model.named_modules(), "
        "such as 'stem', 'layer1.0.conv1', 'layer1.0.bn1'",
    ),
    (
        {"op_names_re": ["zz+"]},
        "op_names_re: 'zz+' matches nothing; the expression is searched for in names "
        "such as 'stem', 'layer1.0.conv1', 'layer1.0.bn1'",
    ),
    ({"exclude_op_names": ["fcc"]}, "exclude_op_names: 'fcc' matches nothing; did you mean 'fc'?"),
    (
        {"op_types": ["Conv2D"]},
        "op_types: 'Conv2D' is no operator type of this model or of torch.nn; did you mean 'Conv2d'?",
    ),
    (
        {"op_types": ["LayrNorm"]},
        "op_types: 'LayrNorm' is no operator type of this model or of torch.nn; did you mean 'LayerNorm'?",
    ),
    (
        {"op_types": ["Zzzz"]},
        "op_types: 'Zzzz' is no operator type of this model or of torch.nn; "
        "the model has BatchNorm2d, Conv2d, Linear, PaddedConv, ReLU",
    ),
    (
        {"exclude_op_types": ["Liner"]},
        "exclude_op_types: 'Liner' is no operator type of this model or of torch.nn; did you mean 'Linear'?",
    ),
    (
        {"op_types": ["BatchNorm2d", "Conv2d"]},
        f"op_types: pruner 'l1' does not support 'BatchNorm2d'; it supports {SUPPORTED}: select one of these",
    ),
    (
        {"op_types": ["LayerNorm"], "pruner": "level"},
        "op_types: pruner 'level' does not support 'LayerNorm'; "
        f"it supports {SUPPORTED}: select one of these",
    ),
    (
        {"op_names": ["layer1.0.bn1"]},
        "op_names: pruner 'l1' does not support 'layer1.0.bn1' (BatchNorm2d); "
        f"it supports {SUPPORTED}: select one of these",
    ),
    (
        {"op_names": ["*bn1"]},
        "op_names: expected a layer the entry can act on, got only 'layer1.0.bn1' (BatchNorm2d), "
        "'layer1.1.bn1' (BatchNorm2d), which op_types, exclude_op_* or the pruner leave out; "
        "name another layer or relax these keys",
    ),
    (
        {"op_names": ["fc"], "op_types": ["Conv2d"]},
        "op_names: expected a layer the entry can act on, got only 'fc' (Linear), which op_types, "
        "exclude_op_* or the pruner leave out; name another layer or relax these keys",
    ),
]


@pytest.mark.parametrize(("scope", "expected"), NOTHING)
def test_a_scope_that_points_nowhere_is_refused(scope: dict[str, Any], expected: str) -> None:
    got = message({"sparsity": 0.1}, {"sparsity": 0.5, **scope})
    assert got == f"config_list[1]: {expected}"


def test_problems_of_all_entries_are_listed_together() -> None:
    lines = message(
        {"op_names": ["stemm", "fcc"], "sparsity": 0.5}, {"op_types": ["ReLU"], "sparsity": 0.5}
    ).splitlines()
    assert lines == [
        "3 problems in config_list:",
        "  config_list[0]: op_names: 'stemm' matches nothing; did you mean 'stem'?",
        "  config_list[0]: op_names: 'fcc' matches nothing; did you mean 'fc'?",
        f"  config_list[1]: op_types: pruner 'l1' does not support 'ReLU'; it supports {SUPPORTED}: "
        "select one of these",
    ]


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ([{"op_types": ["Conv3d"], "sparsity": 0.5}], "check op_types"),
        ([{"sparsity": 0.5}, {"exclude": True, "op_names": ["*"]}], "check exclude"),
        ([{"exclude": True, "op_types": ["default"]}], "check exclude and op_types"),
    ],
)
def test_a_config_that_selects_nothing_is_refused(config: list[dict[str, Any]], remedy: str) -> None:
    assert message(*config) == (
        "config_list: expected at least one selected layer, got none: the model has "
        f"3 Conv2d, 2 BatchNorm2d, 2 ReLU, 2 PaddedConv, 1 Linear; {remedy}"
    )


def test_a_type_the_model_lacks_is_no_error_while_others_are_selected() -> None:
    assert list(sparsities({"op_types": ["Conv3d", "Linear"], "sparsity": 0.5})) == ["fc"]


def test_a_pruner_without_any_sparsity_is_refused() -> None:
    assert message({"op_names": ["fc"], "sparsity": 0.5}, {"op_names": ["stem"], "pruner": "fpgm"}) == (
        "config_list[1]: pruner: expected a sparsity for its layers, got none from any entry; "
        "add 'sparsity': 0.5 or 'total_sparsity': 0.5"
    )


def test_layers_of_different_pruners_are_not_ranked_together() -> None:
    assert message({"total_sparsity": 0.5}, {"op_names": ["fc"], "pruner": "level"}) == (
        "config_list[0]: total_sparsity: expected one pruner for the layers it ranks, got 'l1' for 'stem', "
        "'level' for 'fc'; give each pruner's layers a total_sparsity of their own"
    )


def test_before_capture_only_quantization_may_name_unknown_nodes() -> None:
    selection = run(
        {"op_names": ["stem"], "sparsity": 0.5},
        {"op_names": ["add_1"], "op_types": ["matmul", "add"], "quant_bits": 8},
        {"op_names": ["add_2"], "exclude": True},
        captured=False,
    )
    assert selection.deferred == (
        Deferred(1, "op_names", "add_1"),
        Deferred(1, "op_types", "matmul"),
        Deferred(1, "op_types", "add"),
        Deferred(2, "op_names", "add_2"),
    )
    pruning = {"op_names": ["add_1"], "sparsity": 0.5}
    assert "op_names: 'add_1' matches nothing" in message(pruning, captured=False)
    assert "op_names: 'add_1' matches nothing" in message({**pruning, "quant_bits": 8}, captured=False)
    before_any = {"op_names": ["add_1"], "exclude": True}
    assert "op_names: 'add_1' matches nothing" in message(before_any, pruning, captured=False)
    typo = {"op_types": ["Conv2D"], "quant_bits": 8}
    assert "op_types: 'Conv2D' is no operator type" in message(typo, captured=False)


def test_after_capture_functional_nodes_are_targets_like_any_other() -> None:
    by_type = run({"op_types": ["add"], "quant_bits": 8}, extra=(ADD,))
    by_name = run({"op_names": ["add_1"], "quant_bits": 8}, extra=(ADD,))
    assert list(by_type.quantization) == list(by_name.quantization) == ["add_1"]
    assert by_type.deferred == ()
    with pytest.raises(ConfigError, match="op_names: 'add_2' matches nothing; did you mean 'add_1'"):
        run({"op_names": ["add_2"], "quant_bits": 8}, extra=(ADD,))
    assert "did you mean 'matmul'?" in message({"op_types": ["matmull"], "quant_bits": 8})


def test_default_of_quantization_is_what_has_weights_but_a_name_selects_anything() -> None:
    assert list(run({"quant_bits": 8}, extra=(ADD,)).quantization) == [*CONVS, "fc"]
    assert list(run({"quant_bits": 8, "op_types": ["add"]}, extra=(ADD,)).quantization) == ["add_1"]
    assert list(run({"op_types": ["ReLU"], "quant_bits": 8}).quantization) == [
        "layer1.0.relu",
        "layer1.1.relu",
    ]


def test_the_keys_of_a_schedule_merge_like_others_and_the_latest_amount_holds() -> None:
    pruning = run(
        {"sparsity": 0.5, "end_epoch": 8, "frequency": 2},
        {"op_names": ["fc"], "final_sparsity": 0.9, "initial_sparsity": 0.1},
        {"op_names": ["stem"], "total_sparsity": 0.3},
    ).pruning
    fc, stem = pruning["fc"], pruning["stem"]
    assert (fc.sparsity, fc.final_sparsity, fc.goal, fc.end_epoch, fc.frequency) == (None, 0.9, 0.9, 8, 2)
    assert (stem.sparsity, stem.total_sparsity, stem.goal) == (None, 0.3, 0.3)
    assert (fc.at(0.2).sparsity, fc.at(0.2).final_sparsity) == (0.2, None)
    assert fc.at(0.2).given() == {"sparsity": 0.2, "initial_sparsity": 0.1, "end_epoch": 8, "frequency": 2}
    assert (stem.at(0.2).sparsity, stem.at(0.2).total_sparsity) == (None, 0.2)


def test_schedules_that_run_backwards_are_refused_also_across_entries() -> None:
    assert message({"sparsity": 0.5, "end_epoch": 3}, {"op_names": ["fc"], "start_epoch": 3}) == (
        "config_list[0]: end_epoch: expected more than start_epoch (3 for 'fc'), got 3; raise it"
    )
    assert message({"sparsity": 0.5}, {"op_names": ["fc"], "initial_sparsity": 0.6}) == (
        "config_list[1]: initial_sparsity: expected at most the final one (0.5 for 'fc'), got 0.6; lower it"
    )
