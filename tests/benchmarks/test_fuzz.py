"""The record of a fuzz run."""

from __future__ import annotations

from benchmarks.fuzz import examine
from benchmarks.fuzz_record import Outcome, merged, summary_of
from tests.generator import random_network


def test_the_record_counts_operators_and_names_the_rules_never_reached() -> None:
    conv = frozenset(("conv2d", "relu"))
    found = [
        Outcome(0, "passed", operators=conv),
        Outcome(1, "passed", operators=conv | {"tensordot"}, frozen=frozenset(("tensordot",))),
    ]
    record = summary_of(found, 1.0)
    assert record["networks_with_operator"] == {"conv2d": 2, "relu": 2, "tensordot": 1}
    assert record["operators_without_rule"] == ["tensordot"]
    never = record["ruled_operators_never_seen"]
    assert "softmax" in never
    assert not {"conv2d", "pointwise"} & set(never)


def test_an_examined_network_tells_its_operators() -> None:
    seed = next(s for s in range(50) if "nn.Conv2d" in random_network(s).source)
    assert "conv2d" in examine(seed, reduction_seconds=0.0).operators


def test_two_parts_make_one_record() -> None:
    first = [Outcome(0, "passed", operators=frozenset(("relu",))), Outcome(1, "failed", "law 1", "wrong")]
    second = [Outcome(2, "passed", operators=frozenset(("relu", "conv2d")))]
    whole, parts = summary_of(first + second, 3.0), merged(summary_of(first, 1.0), summary_of(second, 2.0))
    assert [(part["first"], part["last"]) for part in parts["parts"]] == [(0, 1), (2, 2)]
    for key in ("networks", "seconds", "verdicts", "laws_failed", "networks_with_operator", "failures"):
        assert parts[key] == whole[key], key
    assert merged({}, whole) is whole
