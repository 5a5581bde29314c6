"""The criteria benchmark: its parts, on a task that takes no time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.criteria import Task, Tokens, majority, methods, pruned_by, run_seed, summary_of, table_of
from fxcompress.graph.cost import count_macs


def test_the_label_is_the_most_frequent_token() -> None:
    ids, label = next(iter(majority(0).batches(1)))
    for row, answer in zip(ids.tolist(), label.tolist(), strict=True):
        assert row.count(answer) == max(map(row.count, row))


def test_a_criterion_meets_the_share_of_macs() -> None:
    task = majority(0, scale=0.0)
    torch.manual_seed(0)
    model = Tokens(width=16)
    small = pruned_by("taylor", model, task)
    inputs = task.test[0][:2]
    share = count_macs(small, inputs).total / count_macs(model, inputs).total
    assert task.keep - 0.1 < share <= task.keep


def test_rows_hold_accuracy_or_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    task = majority(0, scale=0.0)

    def broken(model: nn.Module, task: Task) -> nn.Module:
        raise RuntimeError("no such model")

    def untouched(model: nn.Module, task: Task) -> nn.Module:
        return model

    monkeypatch.setattr("benchmarks.criteria.methods", lambda task: {"a": untouched, "b": broken})
    rows = run_seed(task, 0)
    assert rows["a"]["macs"] == 1.0
    assert rows["b"] == {"failed": "RuntimeError: no such model"}
    summary = summary_of({"0": rows, "1": rows})
    assert summary["a"]["seeds"] == 2
    assert summary["a"]["spread"] == 0.0
    assert summary["b"]["failed"] == 2
    assert table_of("majority", summary).row_count == 3
    assert "slim" not in methods(task)
