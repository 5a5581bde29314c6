"""Property: `select` equals a key-by-key merge of plain dicts over the layers each entry points at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.config.registry import PRUNABLE, QUANTIZABLE, known_pruners
from fxcompress.config.schema import PRUNING_KEYS, Entry, parse
from fxcompress.config.select import Selection, select
from fxcompress.config.settings import PruningSettings, QuantSettings
from fxcompress.config.targets import Target
from fxcompress.config.values import PerType
from fxcompress.errors import ConfigError

TYPES = {
    "stem": "Conv2d",
    "bn": "BatchNorm2d",
    "a.conv": "Conv2d",
    "a.fc": "Linear",
    "b.conv": "Conv1d",
    "b.act": "ReLU",
    "head": "Linear",
}
TARGETS = [Target(name, (op_type,)) for name, op_type in TYPES.items()]

PRUNING = {
    "pruner": st.sampled_from(["l1", "l2", "fpgm", "level"]),
    "sparsity": st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    "total_sparsity": st.sampled_from([0.3, 0.6]),
    "max_sparsity_per_layer": st.sampled_from([0.7, 0.95]),
    "granularity": st.sampled_from(["out_channel", "element", "2:4"]),
    "initial_sparsity": st.sampled_from([0.0, 0.1]),
    "final_sparsity": st.sampled_from([0.2, 0.8]),
    "start_epoch": st.sampled_from([0, 2]),
    "end_epoch": st.sampled_from([1, 5, 9]),
    "frequency": st.sampled_from([1, 3]),
    "prune_iterations": st.sampled_from([2, 4]),
}
AMOUNTS = ("sparsity", "total_sparsity", "final_sparsity")
QUANTIZATION = {
    "quantizer": st.sampled_from(["qat", "lsq", "ptq"]),
    "quant_bits": st.sampled_from([2, 4, 8]),
    "quant_dtype": st.sampled_from(["int", "uint"]),
    "quant_start_step": st.sampled_from([0, 100]),
}
SCOPES = {
    "op_names": st.sampled_from([["*"], ["a.*"], ["stem", "head"], ["*conv*", "head"]]),
    "op_types": st.sampled_from([["default"], ["Conv2d"], ["Linear", "Conv1d"], ["default", "Linear"]]),
    "exclude_op_names": st.sampled_from([["a.*"], ["head"]]),
    "exclude_op_types": st.sampled_from([["Linear"], ["Conv2d", "ReLU"]]),
}


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """Draw one well-formed entry: a scope with an effect, or with exclude."""
    entry: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=SCOPES))
    if draw(st.integers(0, 4)) == 0:
        return {"op_names": ["a.*"], **entry, "exclude": True}
    effects = draw(st.fixed_dictionaries({}, optional={**PRUNING, **QUANTIZATION}))
    given_amounts = [key for key in AMOUNTS if key in effects]
    if given_amounts:
        dropped = set(given_amounts[1:]) | (
            set() if given_amounts[0] == "total_sparsity" else {"max_sparsity_per_layer"}
        )
        effects = {k: v for k, v in effects.items() if k not in dropped}
    return {**entry, **(effects or {"sparsity": 0.5})}


def oracle(config: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Merge plain dicts: for each layer ``{key: (value, entry index)}`` for pruning and for quantization."""
    pruning: dict[str, dict[str, Any]] = {name: {} for name in TYPES}
    quantization: dict[str, dict[str, Any]] = {name: {} for name in TYPES}
    for index, entry in enumerate(config):
        for name, op_type in TYPES.items():
            if "op_names" in entry and not any(fnmatchcase(name, glob) for glob in entry["op_names"]):
                continue
            if any(fnmatchcase(name, glob) for glob in entry.get("exclude_op_names", [])):
                continue
            if op_type in entry.get("exclude_op_types", []):
                continue
            types = entry.get("op_types", ["default"])
            if "default" not in types and op_type not in types:
                continue
            if entry.get("exclude"):
                pruning[name], quantization[name] = {}, {}
                continue
            given = {k: (v, index) for k, v in entry.items() if k in PRUNING}
            if op_type in PRUNABLE:
                if any(key in given for key in AMOUNTS):
                    pruning[name] = {k: v for k, v in pruning[name].items() if k not in AMOUNTS}
                pruning[name] |= given
            by_name = "op_names" in entry and "op_types" not in entry
            if op_type in QUANTIZABLE or op_type in types or by_name:
                quantization[name] |= {k: (v, index) for k, v in entry.items() if k in QUANTIZATION}
    return {k: v for k, v in pruning.items() if v}, {k: v for k, v in quantization.items() if v}


def amounts(merged: dict[str, Any]) -> bool:
    return any(key in merged for key in AMOUNTS)


def backwards(merged: dict[str, Any]) -> bool:
    """Whether a schedule would fall, or end before it starts."""
    value = {key: value for key, (value, _) in merged.items()}
    goal = next((value[key] for key in AMOUNTS if key in value), 0.0)
    ends_early = "end_epoch" in value and value["end_epoch"] <= value.get("start_epoch", 0)
    return value.get("initial_sparsity", 0.0) > goal or ends_early


def refusals(config: list[dict[str, Any]], message: str) -> bool:
    """Whether the oracle agrees that there is something to refuse, of the kind the message names."""
    pruning, quantization = oracle(config)
    if "expected a sparsity" in message:
        return any(not amounts(merged) for merged in pruning.values())
    if "one pruner for the layers" in message:
        groups: dict[int, set[str]] = {}
        for merged in pruning.values():
            if "total_sparsity" in merged:
                groups.setdefault(merged["total_sparsity"][1], set()).add(merged.get("pruner", ("l1", 0))[0])
        return any(len(names) > 1 for names in groups.values())
    if "expected at most the final one" in message or "expected more than start_epoch" in message:
        return any(amounts(merged) and backwards(merged) for merged in pruning.values())
    if "at least one selected layer" in message:
        return not pruning and not quantization
    if "expected a layer the entry can act on" in message:
        index = int(message.split("config_list[")[1].split("]")[0])
        entry = {key: value for key, value in config[index].items() if key != "exclude"}
        probe = {"op_names": ["*"], **entry, "quant_bits": 8} if "exclude" in config[index] else entry
        return oracle([probe]) == ({}, {})
    return False


@settings(max_examples=300, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=6))
def test_precedence_is_a_key_by_key_merge(config: list[dict[str, Any]]) -> None:
    parsed = parse(config)
    selection, refused = attempt(parsed)
    if selection is None:
        assert refusals(config, refused), f"{config!r} was refused: {refused}"
        return
    pruning, quantization = oracle(config)
    pruning = {name: merged for name, merged in pruning.items() if amounts(merged)}
    assert {name: given_keys(found) for name, found in selection.pruning.items()} == pruning
    assert {name: given_keys(found) for name, found in selection.quantization.items()} == quantization
    assert set(selection.unselected) == set(TYPES) - set(pruning) - set(quantization)


def attempt(parsed: Sequence[Entry]) -> tuple[Selection | None, str]:
    try:
        return select(parsed, TARGETS, known_pruners()), ""
    except ConfigError as error:
        return None, str(error)


def given_keys(found: PruningSettings | QuantSettings) -> dict[str, tuple[object, int]]:
    """Return ``{key: (value, entry index)}``; keys that no entry gave must have their defaults."""
    result = {}
    for item in fields(found):
        value = getattr(found, item.name)
        if isinstance(value, PerType):
            value = value.weight
        if item.name in found.sources:
            result[item.name] = (value, found.sources[item.name])
        elif item.name != "sources":
            default = getattr(type(found)(), item.name)
            assert value == (default.weight if isinstance(default, PerType) else default)
    return result


def test_the_strategy_covers_every_pruning_key() -> None:
    assert set(PRUNING) == set(PRUNING_KEYS)
