"""The record of a fuzz run: what the networks were made of, which laws failed; parts of one run added up."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results_file import commit, machine_facts
from benchmarks.tables import markdown_table, pairs_table
from fxcompress.rules.registry import ruled_operators
from tests.generator import KINDS

NO_OPERATORS = frozenset((
    "getitem", "pointwise",  # Python's own, and the rule of all that have none
    "transformers::grouped_mm_fallback",  # another library defines it
    "fxcompress.fake_quantize",  # networks are pruned only
))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of network `seed`: `verdict` is passed, unsuited, failed or generator error."""

    seed: int
    verdict: str
    law: str = ""
    summary: str = ""
    file: str = ""
    kinds: tuple[str, ...] = ()
    seconds: float = 0.0
    operators: frozenset[str] = frozenset()
    frozen: frozenset[str] = frozenset()  # those of `operators` that no rule serves


def summary_of(found: Sequence[Outcome], seconds: float, again: Sequence[int] = ()) -> dict[str, Any]:
    """The record written to --out: counts, coverage by family and kind, and each failure's one line.

    ``again``: seeds among them that failed in an earlier part.
    """
    applied = collections.Counter(kind for outcome in found for kind in outcome.kinds)
    operators = collections.Counter(name for outcome in found for name in outcome.operators)
    frozen = frozenset[str]().union(*(outcome.frozen for outcome in found))
    families: collections.Counter[str] = collections.Counter()
    for outcome in found:
        families.update({KINDS[kind].family for kind in outcome.kinds})
    return {
        "benchmark": "fuzz",
        "machine": machine_facts(),
        "networks": len(found),
        "verdicts": dict(collections.Counter(outcome.verdict for outcome in found)),
        "laws_failed": dict(collections.Counter(o.law for o in found if o.verdict == "failed")),
        "seconds": round(seconds, 1),
        "parts": [
            {
                "first": min((o.seed for o in found), default=0),
                "last": max((o.seed for o in found), default=-1),
                "networks": len(found),
                "again": list(again),
                "commit": commit(),
                "seconds": round(seconds, 1),
            }
        ],
        "steps_per_network": round(applied.total() / max(len(found), 1), 2),
        "networks_with_family": dict(families.most_common()),
        "steps_of_kind": {kind: applied[kind] for kind in KINDS},
        "networks_with_operator": dict(operators.most_common()),
        "operators_without_rule": sorted(frozen),
        "ruled_operators_never_seen": sorted(set(ruled_operators()) - set(operators) - NO_OPERATORS),
        "failures": [
            {
                key: value
                for key, value in asdict(o).items()
                if key in ("seed", "verdict", "law", "summary", "seconds")
            }
            for o in found
            if o.verdict in ("failed", "generator error")
        ],
    }


def without_failures(record: dict[str, Any]) -> dict[str, Any]:
    """The record before its failed networks were examined; what they are made of stays counted."""
    failures = record["failures"]
    verdicts = collections.Counter(record["verdicts"])
    verdicts.subtract(failure["verdict"] for failure in failures)
    less = {"networks": record["networks"] - len(failures), "failures": [], "laws_failed": {}}
    return {**record, **less, "verdicts": dict(+verdicts)}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The record of two parts of one run: counts add up."""
    if not old:
        return new
    total = old["networks"] + new["networks"]
    record = dict(new)
    for key in ("networks", "seconds"):
        record[key] = round(old[key] + new[key], 1)
    for key in ("parts", "failures"):
        record[key] = old[key] + new[key]
    for key in ("verdicts", "laws_failed", "networks_with_family", "steps_of_kind", "networks_with_operator"):
        counts = collections.Counter(old[key]) + collections.Counter(new[key])
        record[key] = dict(counts.most_common())
    steps = [part["steps_per_network"] * part["networks"] for part in (old, new)]
    record["steps_per_network"] = round(sum(steps) / max(total, 1), 2)
    record["operators_without_rule"] = sorted(
        {*old["operators_without_rule"], *new["operators_without_rule"]}
    )
    seen = set(record["networks_with_operator"])
    record["ruled_operators_never_seen"] = sorted(set(ruled_operators()) - seen - NO_OPERATORS)
    return record


def markdown(record: dict[str, Any]) -> str:
    """Verdicts, then what the networks were made of."""
    facts = {
        "networks": record["networks"],
        "verdicts": record["verdicts"],
        "laws that failed": record["laws_failed"],
        "steps per network": record["steps_per_network"],
        "operators reached": len(record["networks_with_operator"]),
        "operators with a rule that never occurred": record["ruled_operators_never_seen"],
        "networks with steps of a family": record["networks_with_family"],
    }
    return markdown_table(pairs_table(facts))


def show(console: Console, found: Sequence[Outcome], record: dict[str, Any]) -> None:
    """Print coverage and failures."""
    table = Table("family", "networks", "steps by kind", title="What the networks were made of")
    steps, networks = record["steps_of_kind"], record["networks_with_family"]
    for family, count in networks.items():
        kinds = [f"{name} {steps.get(name, 0)}" for name, kind in KINDS.items() if kind.family == family]
        table.add_row(family, str(count), ", ".join(kinds))
    console.print(table)
    counts, never = record["networks_with_operator"], record["ruled_operators_never_seen"]
    console.print("Networks with operator:", ", ".join(f"{name} {count}" for name, count in counts.items()))
    console.print("Operators without a rule:", record["operators_without_rule"])
    console.print(f"Operators with a rule that never occurred ({len(never)}):", ", ".join(never))
    for outcome in sorted(found, key=lambda o: (o.law, o.summary)):
        if outcome.verdict in ("failed", "generator error"):
            first_line = outcome.summary.strip().splitlines()[0][:200]
            console.print(f"{outcome.verdict} {outcome.seed}: {first_line}", markup=False)
    console.print(f"{record['networks']} networks in {record['seconds']} s: {record['verdicts']}")
