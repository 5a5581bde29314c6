"""Search spaces: what is drawn from them, how they are written, and what a malformed one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxcompress.auto import AutoCompressionSearchSpaceGenerator
from fxcompress.auto.space import algorithms_of, drawn, read_space
from fxcompress.auto.study import import_optuna
from fxcompress.errors import ConfigError


def range_of(kind: str, *value: Any) -> dict[str, Any]:
    return {"_type": kind, "_value": list(value)}


def space() -> AutoCompressionSearchSpaceGenerator:
    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("level", [{"op_types": ["Conv2d"], "sparsity": range_of("uniform", 0.2, 0.8)}])
    bits = {"weight": range_of("choice", 4, 8), "input": 8}
    generator.add_config("qat", [{"quant_types": ["weight", "input"], "quant_bits": bits}])
    generator.add_config("slim", [{"sparsity": 0.5}], scale=range_of("loguniform", 1e-5, 1e-3))
    return generator


def drawing(values: dict[str, Any]) -> Any:
    return import_optuna().trial.FixedTrial(values)


def test_a_range_is_drawn_under_the_name_of_its_place() -> None:
    entries = space().algorithms
    assert drawn(drawing({"algorithm": "level", "level/0/sparsity": 0.3}), entries) == {
        "algorithm": "level",
        "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.3}],
        "parameters": {},
    }
    found = drawn(drawing({"algorithm": "qat", "qat/0/quant_bits/weight": 4}), entries)
    assert found["config_list"][0]["quant_bits"] == {"weight": 4, "input": 8}
    assert drawn(drawing({"algorithm": "slim", "slim/scale": 1e-4}), entries)["parameters"] == {"scale": 1e-4}


@pytest.mark.parametrize(
    ("given", "stored", "expected"),
    [
        (range_of("quniform", 0.1, 0.95, 0.25), 0.61, 0.5),
        (range_of("quniform", 0.1, 0.95, 0.25), 0.11, 0.1),  # 0 is below the range
        (range_of("quniform", 0.1, 0.95, 0.25), 0.94, 0.95),  # 1 is above
        (range_of("qloguniform", 0.01, 0.9, 0.05), 0.12, 0.1),
        (range_of("uniform", 0.1, 0.9), 0.61, 0.61),
    ],
)
def test_quantized_ranges_are_rounded_and_clipped(
    given: dict[str, Any], stored: float, expected: float
) -> None:
    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("l1", [{"sparsity": given}])
    found = drawn(drawing({"l1/0/sparsity": stored}), generator.algorithms)
    assert found["config_list"][0]["sparsity"] == pytest.approx(expected, abs=1e-12)


def test_randint_leaves_its_upper_end_out() -> None:
    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("naive", [{"quant_bits": range_of("randint", 3, 5)}])
    study = import_optuna().create_study(sampler=import_optuna().samplers.RandomSampler(seed=0))
    found = {drawn(study.ask(), generator.algorithms)["config_list"][0]["quant_bits"] for _ in range(30)}
    assert found == {3, 4}


def test_an_option_may_have_ranges_of_its_own() -> None:
    generator = AutoCompressionSearchSpaceGenerator()
    nested = range_of("choice", {"_name": "few", "weight": range_of("choice", 2, 3), "input": 8}, 8)
    generator.add_config("qat", [{"quant_bits": nested}])
    values = {"qat/0/quant_bits": "few", "qat/0/quant_bits/few/weight": 3}
    assert drawn(drawing(values), generator.algorithms)["config_list"] == [
        {"quant_bits": {"weight": 3, "input": 8}}
    ]


def test_an_algorithm_may_stand_twice() -> None:
    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("l1", [{"sparsity": 0.25}])
    generator.add_config("l1", [{"sparsity": 0.5}])
    found = drawn(drawing({"algorithm": "l1 (2)"}), generator.algorithms)
    assert found["config_list"] == [{"sparsity": 0.5}]


def test_dumps_is_json_that_loads_takes_over(tmp_path: Path) -> None:
    dumped = space().dumps()
    assert [group["_name"] for group in dumped["compressor_type"]["_value"]] == ["pruner", "quantizer"]
    (tmp_path / "space.json").write_text(json.dumps(dumped))
    twin = AutoCompressionSearchSpaceGenerator()
    twin.loads(read_space(tmp_path / "space.json"))
    assert twin.dumps() == dumped


def test_the_flat_keys_of_the_seeds_are_understood() -> None:
    flat = {
        "_name": "qat",
        "config_list::weight:input::Conv2d:Linear::::quant_bits": range_of("choice", 8),
        "parameter::observer": "minmax",
    }
    pruner = {"_name": "level", "config_list::default::a:b::sparsity": range_of("uniform", 0.1, 0.9)}
    groups = [{"_name": k, "algorithm_name": range_of("choice", v)} for k, v in (("q", flat), ("p", pruner))]
    found = algorithms_of({"compressor_type": range_of("choice", *groups)})
    assert found[0]["config_list"] == [
        {
            "quant_types": ["weight", "input"],
            "op_types": ["Conv2d", "Linear"],
            "quant_bits": range_of("choice", 8),
        }
    ]
    assert found[0]["parameters"] == {"observer": "minmax"}
    assert found[1]["config_list"][0]["op_names"] == ["a", "b"]


def sparsity(kind: str, *value: Any) -> list[dict[str, Any]]:
    return [{"sparsity": range_of(kind, *value)}]


@pytest.mark.parametrize(
    ("name", "config_list", "message"),
    [
        ("lvel", [{"sparsity": 0.5}], r"algorithm: expected the name .* got 'lvel'; did you mean 'level'"),
        ("level", [], r"pruner 'level': config_list: expected a non-empty list, got \[\]"),
        ("level", sparsity("unifrm", 0, 1), r"\[0\]\.sparsity: _type: got 'unifrm'; did you mean 'uniform'"),
        ("level", sparsity("uniform", 0.1), r"_value: expected \[low, high\] for uniform, got \[0.1\]"),
        ("level", sparsity("uniform", 0.9, 0.1), r"_value: expected low < high, got \[0.9, 0.1\]"),
        ("level", sparsity("loguniform", 0, 0.5), r"expected 0 < low < high, got \[0, 0.5\]"),
        ("level", sparsity("quniform", 0.1, 0.5, 0), r"low < high and q > 0"),
        ("level", sparsity("uniform", "a", 0.5), r"expected numbers for uniform"),
        ("qat", [{"quant_bits": range_of("randint", 1, 8.5)}], r"expected whole numbers for randint"),
        ("qat", [{"quant_bits": range_of("choice")}], r"expected a list of options for choice, got \[\]"),
        ("level", [{"sparsty": 0.5}], r"pruner 'level': config_list\[0\]: sparsty: unknown key"),
        ("level", sparsity("uniform", 0.5, 50), r"config_list\[0\]: sparsity: expected a number in"),
    ],
)  # fmt: skip
def test_a_malformed_space_says_what_is_wrong(name: str, config_list: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoCompressionSearchSpaceGenerator().add_config(name, config_list)


@pytest.mark.parametrize("value", [None, [], {"compressor_type": {}}, {"compressor_type": {"_value": [1]}}])
def test_something_else_is_no_space(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"search space: expected what .*dumps\(\) gives"):
        AutoCompressionSearchSpaceGenerator().loads(value)
