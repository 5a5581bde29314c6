"""Every malformed config list gives one error that names entry, key, what was expected, got, and a remedy."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fxcompress.config.registry import known_pruners
from fxcompress.config.schema import KEYS, parse
from fxcompress.config.values import PerType
from fxcompress.errors import ConfigError

FRACTION = "expected a number in [0, 1), got"
BITS = "expected an integer in 1..32, got"
STRINGS = "expected a non-empty list of strings, got"
PRUNERS = ", ".join(map(repr, sorted(known_pruners())))

# The whole message is compared: what follows is every word a user sees.
NOT_A_LIST: list[tuple[object, str]] = [
    (None, "got NoneType None; write [{'sparsity': 0.5}]"),
    ({"sparsity": 0.5}, "got dict {'sparsity': 0.5}; wrap the entry in a list"),
    ("sparsity", "got str 'sparsity'; write [{'sparsity': 0.5}]"),
    ([], "got an empty list; add an entry such as {'sparsity': 0.5}"),
]

BAD_VALUE: list[tuple[str, object, str]] = [
    ("sparsity", 1.5, f"{FRACTION} 1.5; 0.5 removes half"),
    ("sparsity", 1, f"{FRACTION} 1; 0.5 removes half"),
    ("sparsity", 50, f"{FRACTION} 50; write 0.5 for 50 %"),
    ("sparsity", -0.1, f"{FRACTION} -0.1; 0.5 removes half"),
    ("sparsity", float("nan"), f"{FRACTION} nan; 0.5 removes half"),
    ("sparsity", 10**400, f"{FRACTION} {str(10**400)[:77]}...; 0.5 removes half"),
    ("sparsity", "0.5", f"{FRACTION} '0.5'; write the number without quotes"),
    ("sparsity", True, f"{FRACTION} True; write for example 0.5 to remove half"),
    ("sparsity", None, f"{FRACTION} None; write for example 0.5 to remove half"),
    ("total_sparsity", 1.0, f"{FRACTION} 1.0; 0.5 removes half"),
    (
        "max_sparsity_per_layer",
        0.0,
        "expected a number in (0, 1], got 0.0; 0.9 keeps at least a tenth of every layer",
    ),
    (
        "pruner",
        "L1",
        f"expected one of {PRUNERS}, got 'L1'; did you mean 'l1'?",
    ),
    (
        "pruner",
        7,
        f"expected one of {PRUNERS}, got 7; use one of these",
    ),
    (
        "quantizer",
        "qta",
        "expected one of 'bnn', 'dorefa', 'dynamic', 'gptq', 'lsq', 'lsq+', 'naive', 'ptq', 'qat', "
        "'weight_only', got 'qta'; did you mean 'qat'?",
    ),
    (
        "granularity",
        "outchannel",
        "expected one of 'default', 'element', 'row', 'out_channel', 'in_channel', 'head', 'head_dim', '2:4' "
        "or a block such as [4, 4], got 'outchannel'; did you mean 'out_channel'?",
    ),
    (
        "granularity",
        4,
        "expected one of 'default', 'element', 'row', 'out_channel', 'in_channel', 'head', 'head_dim', '2:4' "
        "or a block such as [4, 4], got 4; leave it out for the pruner's own",
    ),
    ("granularity", [4, 0], "expected a block of positive integers, got [4, 0]; write for example [4, 4]"),
    ("granularity", [], "expected a block of positive integers, got []; write for example [4, 4]"),
    ("initial_sparsity", 1.0, f"{FRACTION} 1.0; 0.5 removes half"),
    ("final_sparsity", 80, f"{FRACTION} 80; write 0.8 for 80 %"),
    ("start_epoch", -1, "expected an integer of at least 0, got -1; epochs count from 0"),
    ("end_epoch", 1.5, "expected an integer of at least 0, got 1.5; epochs count from 0"),
    ("frequency", 0, "expected an integer of at least 1, got 0; write for example 1"),
    ("prune_iterations", True, "expected an integer of at least 1, got True; write for example 1"),
    (
        "quant_types",
        ["weigth"],
        "expected one of 'weight', 'input', 'output', got 'weigth'; did you mean 'weight'?",
    ),
    ("quant_types", "weight", f"{STRINGS} 'weight'; write ['weight']"),
    ("quant_bits", 0, f"{BITS} 0; write for example 8"),
    ("quant_bits", 33, f"{BITS} 33; write for example 8"),
    ("quant_bits", 8.0, f"{BITS} 8.0; write for example 8"),
    ("quant_bits", True, f"{BITS} True; write for example 8"),
    ("quant_bits", {"weight": 0}, f"{BITS} 0; write for example 8"),
    (
        "quant_bits",
        {"wieght": 4},
        "expected one of 'weight', 'input', 'output', got 'wieght'; did you mean 'weight'?",
    ),
    (
        "quant_bits",
        {},
        "expected a value, or a dict with one per quant type, got {}; write {'weight': 8}",
    ),
    ("quant_dtype", "Int", "expected one of 'int', 'uint', got 'Int'; did you mean 'int'?"),
    (
        "quant_scheme",
        {"input": "affine"},
        "expected one of 'per_tensor_affine', 'per_tensor_symmetric', 'per_channel_affine', "
        "'per_channel_symmetric', got 'affine'; use one of these",
    ),
    (
        "quant_scale",
        {"weight": "power of two"},
        "expected one of 'float', 'power_of_two', got 'power of two'; did you mean 'power_of_two'?",
    ),
    (
        "quant_start_step",
        -1,
        "expected an integer of at least 0, got -1; 0 quantizes from the first step",
    ),
    ("op_types", "Conv2d", f"{STRINGS} 'Conv2d'; write ['Conv2d']"),
    ("op_names", [], f"{STRINGS} []; name at least one, or leave the key out"),
    ("op_names", {"fc"}, f"{STRINGS} {{'fc'}}; write for example ['conv1', 'layer1.*']"),
    (
        "exclude_op_names",
        ["fc", 3],
        "expected strings in the list, got 3; write each name as a non-empty string",
    ),
    (
        "op_names_re",
        ["("],
        "expected a regular expression, got '('; it does not compile "
        "(missing ), unterminated subpattern at position 0); for globs use op_names",
    ),
    (
        "exclude_op_names_re",
        ["*fc"],
        "expected a regular expression, got '*fc'; it does not compile "
        "(nothing to repeat at position 0); for globs use op_names",
    ),
    ("exclude", "yes", "expected True or False, got 'yes'; write True, or leave the key out"),
]

NO_EFFECT = (
    "config_list[0]: expected a pruning key, a quantization key or exclude: True, got {}; "
    "add for example 'sparsity': 0.5, 'quant_bits': 8 or 'exclude': True"
)

BAD_ENTRY: list[tuple[Any, str]] = [
    (1, "config_list[0]: expected a dict, got int 1; write for example {'sparsity': 0.5}"),
    ({}, NO_EFFECT.format("an empty entry")),
    ({"op_types": ["Conv2d"]}, NO_EFFECT.format("only op_types")),
    ({"op_names": ["a"], "exclude": False}, NO_EFFECT.format("only op_names, exclude")),
    ({"sparsiti": 0.5}, "config_list[0]: sparsiti: unknown key; did you mean 'sparsity'?"),
    ({"Sparsity": 0.5}, "config_list[0]: Sparsity: unknown key; did you mean 'sparsity'?"),
    (
        {"sparsity_per_layer": 0.5},
        "config_list[0]: sparsity_per_layer: unknown key; did you mean 'sparsity'?",
    ),
    ({"index": 3, "sparsity": 0.5}, f"config_list[0]: index: unknown key; expected one of {', '.join(KEYS)}"),
    ({1: 2}, "config_list[0]: 1: expected a key that is a string, got int; quote it"),
    (
        {"sparsity": 0.5, "total_sparsity": 0.6},
        "config_list[0]: sparsity, total_sparsity: expected one of the two, got 0.5 and 0.6; keep sparsity "
        "for one fraction in every layer, total_sparsity for one ranked over all of them",
    ),
    (
        {"sparsity": 0.5, "max_sparsity_per_layer": 0.6},
        "config_list[0]: sparsity, max_sparsity_per_layer: expected one of the two, got 0.5 and 0.6; "
        "max_sparsity_per_layer limits total_sparsity: leave it out, or use total_sparsity",
    ),
    (
        {"total_sparsity": 0.8, "max_sparsity_per_layer": 0.5},
        "config_list[0]: max_sparsity_per_layer: expected at least total_sparsity (0.8), got 0.5; "
        "no layers can reach the total below it: raise it or lower total_sparsity",
    ),
    (
        {"sparsity": 0.5, "final_sparsity": 0.6},
        "config_list[0]: sparsity, final_sparsity: expected one of the two, got 0.5 and 0.6; they mean the "
        "same to a schedule: keep final_sparsity",
    ),
    (
        {"total_sparsity": 0.5, "final_sparsity": 0.6},
        "config_list[0]: total_sparsity, final_sparsity: expected one of the two, got 0.5 and 0.6; "
        "total_sparsity is itself the goal of a schedule: leave final_sparsity out",
    ),
    (
        {"exclude": True},
        "config_list[0]: exclude: expected what to exclude, got no op_types, op_names or op_names_re; "
        "add for example 'op_names': ['conv1']",
    ),
    *(
        (
            {"exclude": True, "op_names": ["fc"], key: value},
            f"config_list[0]: exclude: expected no pruning or quantization key beside it, got {key}; "
            "move these into an entry of their own, or drop exclude",
        )
        for key, value in [("sparsity", 0.5), ("pruner", "l1"), ("quant_bits", 8), ("granularity", None)]
    ),
]


def message(config_list: object) -> str:
    with pytest.raises(ConfigError) as error:
        parse(config_list)
    return str(error.value)


@pytest.mark.parametrize(("config_list", "tail"), NOT_A_LIST)
def test_something_that_is_no_list_of_entries_is_refused(config_list: object, tail: str) -> None:
    assert message(config_list) == f"config_list: expected a non-empty list of dicts, {tail}"


@pytest.mark.parametrize(("key", "value", "tail"), BAD_VALUE)
def test_a_bad_value_is_refused_with_its_entry_and_key(key: str, value: object, tail: str) -> None:
    entry = {"op_names": ["fc"], "sparsity": 0.5, key: value}
    if key in ("total_sparsity", "max_sparsity_per_layer", "final_sparsity"):
        entry = {key: value}
    if key == "exclude":
        entry = {"op_names": ["fc"], key: value}
    assert message([{"sparsity": 0.1}, entry]) == f"config_list[1]: {key}: {tail}"


@pytest.mark.parametrize(("entry", "expected"), BAD_ENTRY)
def test_an_entry_whose_keys_do_not_fit_is_refused(entry: object, expected: str) -> None:
    assert message([entry]) == expected


def test_several_problems_are_listed_one_line_each() -> None:
    lines = message([{"pruner": "fpmg", "sparsity": 2, "quant_dtyp": 4}, {"sparsity": 0.5}, 3]).splitlines()
    assert lines[0] == "4 problems in config_list:"
    assert lines[1] == "  config_list[0]: quant_dtyp: unknown key; did you mean 'quant_dtype'?"
    assert [line.split(": ")[:2] for line in lines[2:4]] == [
        ["  config_list[0]", "pruner"],
        ["  config_list[0]", "sparsity"],
    ]
    assert lines[4].startswith("  config_list[2]: expected a dict")


def test_no_message_is_a_pydantic_dump() -> None:
    for entry, _ in BAD_ENTRY:
        text = message([entry])
        assert "validation error" not in text
        assert "pydantic" not in text


def test_valid_values_are_normalized() -> None:
    entry = parse(
        (
            {
                "op_types": ("default", "Conv2d"),
                "sparsity": np.float32(0.5),
                "granularity": [4, 4],
                "quant_types": ["output", "weight", "output"],
                "quant_bits": {"weight": 4},
                "quant_scheme": "per_tensor_symmetric",
                "quant_scale": {"input": "power_of_two"},
            },
        )
    )[0]
    assert entry.index == 0
    assert entry.label == "config_list[0]"
    assert entry.op_types == ("default", "Conv2d")
    assert entry.pruning == {"sparsity": 0.5, "granularity": (4, 4)}
    assert entry.quant_types == ("weight", "output")
    assert entry.quant_bits == PerType(weight=4, input=8, output=8)
    assert entry.quant_scheme == PerType(*["per_tensor_symmetric"] * 3)
    assert entry.quant_scale == PerType("float", "power_of_two", "float")
    assert list(entry.quantization) == ["quant_types", "quant_bits", "quant_scheme", "quant_scale"]


@pytest.mark.parametrize("value", [0, 0.0, 0.5, 0.999, Fraction(1, 4), np.float64(0.25)])
def test_every_number_in_the_half_open_interval_is_a_sparsity(value: Any) -> None:
    assert parse([{"sparsity": value}])[0].sparsity == float(value)


@pytest.mark.parametrize(
    "value", ["default", "element", "row", "out_channel", "in_channel", "head", "head_dim", "2:4"]
)
def test_named_granularities_are_kept(value: str) -> None:
    assert parse([{"sparsity": 0.5, "granularity": value}])[0].granularity == value


def test_granularity_none_is_given_and_means_default() -> None:
    assert parse([{"granularity": None}])[0].pruning == {"granularity": "default"}


def test_entries_are_frozen_and_the_input_is_left_alone() -> None:
    raw = {"sparsity": 0.5, "op_names": ["fc"]}
    entry = parse([raw])[0]
    with pytest.raises(ValidationError, match="frozen"):
        entry.sparsity = 0.7
    assert raw == {"sparsity": 0.5, "op_names": ["fc"]}


def test_valid_pruner_names_are_an_argument() -> None:
    assert parse([{"pruner": "mine", "sparsity": 0.5}], pruners=["mine"])[0].pruner == "mine"
    with pytest.raises(ConfigError, match="expected one of 'mine', got 'l1'"):
        parse([{"pruner": "l1", "sparsity": 0.5}], pruners=["mine"])
