"""Torch-Pruning beside ours: recipes, one model end to end, the sample, counts and the table."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import zoo_peer, zoo_peer_case
from benchmarks.peer_recipe import HEAD_DIMS, NO_HEADS, PLAIN, WHOLE_HEADS, hints_of, step
from benchmarks.results_file import read_json, write_json
from benchmarks.zoo_case import Settings
from benchmarks.zoo_peer import OURS, PEER
from benchmarks.zoo_peer_case import Subject, TimeLimit, best_row, row_of, subject_of, time_limit
from tests.benchmarks.test_zoo import Small, images


class Attending(nn.Module):
    """Four query heads, two of keys and values, as language models name them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = 4, 2, 2
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.gate_up_proj = nn.Linear(8, 12)


def test_heads_are_found_by_the_names_that_attention_has() -> None:
    model = nn.Sequential(Attending(), nn.MultiheadAttention(6, 3))
    hints = hints_of(model)
    module = hints.attention[0].module
    assert module is model[0]
    assert isinstance(module, Attending)
    assert hints.num_heads() == {module.q_proj: 4, module.k_proj: 2, module.v_proj: 2}
    assert hints.groups == {module.gate_up_proj: 2, model[1]: 3}
    assert hints.recipes == (HEAD_DIMS, WHOLE_HEADS, NO_HEADS)
    assert hints_of(Small()).recipes == (PLAIN,)
    assert hints_of(nn.MultiheadAttention(6, 3)).recipes == (HEAD_DIMS, NO_HEADS)


def test_a_convnet_gets_its_due() -> None:
    pytest.importorskip("torch_pruning")
    subject = subject_of("tv/small", Small, images, 0)
    assert subject.outputs == ("head",)
    row = best_row(subject, Settings(train=True))
    assert row.obstacle == ""
    assert (row.prunes, row.runs, row.exact, row.trains, row.reading) == (True, True, True, True, "zeros")
    assert row.error64 is not None
    assert row.error64 <= 1e-14
    small_stem, small_block, head = 4 * 28 + 8, 8 * (4 * 9 + 1) + 16 + 4 * 9, 5 * 5
    assert row.parameters is not None
    assert row.parameters[1] == small_stem + small_block + head


def test_a_result_that_is_no_masked_model_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    honest = step

    def careless(model: Small, pruner: Any, hints: Any) -> None:
        honest(model, pruner, hints)
        with torch.no_grad():
            model.norm.running_mean.add_(0.1)  # type: ignore[union-attr]

    monkeypatch.setattr(zoo_peer_case, "step", careless)
    row = row_of(subject_of("tv/small", Small, images, 0), PLAIN, Settings())
    assert (row.runs, row.exact) == (True, False)
    assert row.obstacle.startswith("float64: relative error ")


class Fixed(nn.Module):
    """A width written into ``forward``: no tool that leaves code as it is can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).reshape(-1, 2, 4).flatten(1))
        return y


def test_a_result_that_does_not_run_says_why() -> None:
    pytest.importorskip("torch_pruning")
    example = (torch.randn(3, 4),)
    row = row_of(Subject("fixed", Fixed().eval(), example, None, ("second",)), PLAIN, Settings(train=True))
    assert (row.runs, row.exact, row.trains, row.parameters) == (False, False, None, None)
    assert row.obstacle.split(":")[0] in ("prune", "run")


def test_a_time_limit_ends_a_tool_that_swallows_exceptions() -> None:
    def tool() -> None:
        with time_limit(0.05):
            while True:
                with contextlib.suppress(Exception):
                    sum(range(1000))

    with pytest.raises(TimeLimit, match=r"not done after 0\.05 s"):
        tool()


def test_the_sample_is_every_kth_name_less_the_big_ones() -> None:
    cases = [
        (f"m{width}", lambda width=width: nn.Linear(width, 1000, bias=False), None) for width in range(1, 8)
    ]
    assert zoo_peer.sample(cases, 3, 0.004) == (["m1", "m4"], ["m7"])
    assert zoo_peer.sample(cases, 2, 0.001) == (["m1"], ["m3", "m5", "m7"])


def result(exact: bool, removed: float | None, obstacle: str = "") -> dict[str, Any]:
    runs = removed is not None
    return {
        "prunes": runs,
        "runs": runs,
        "exact": exact,
        "trains": runs,
        "removed": removed,
        "error": 0.0,
        "obstacle": obstacle,
    }


def record() -> dict[str, Any]:
    rows = {
        "tv/a": {OURS: result(True, 0.70), PEER: result(True, 0.75)},
        "tv/b": {OURS: result(True, 0.70), PEER: result(True, 0.705)},
        "timm/c": {OURS: result(True, 0.35), PEER: result(False, 0.45)},
        "hf/d": {OURS: result(True, 0.50), PEER: result(False, None, "prune: TypeError: no")},
    }
    return {"summary": zoo_peer.summarize(rows), "sample": {"every": 3, "at_most": 32.0}, "rows": rows}


def test_both_are_counted_alike() -> None:
    summary = record()["summary"]
    assert summary[OURS] == {
        "prunes": 4, "runs": 4, "exact": 4, "trains": 4, "runs, at least 20 % removed": 4,
        "runs, at least 40 % removed": 3, "exact, at least 40 % removed": 3,
    }  # fmt: skip
    assert summary[PEER] == {
        "prunes": 3, "runs": 3, "exact": 2, "trains": 3, "runs, at least 20 % removed": 3,
        "runs, at least 40 % removed": 3, "exact, at least 40 % removed": 2,
    }  # fmt: skip
    assert summary["sets"]["tv"] == {"models": 2, OURS: 2, PEER: 2}
    assert summary["sets"]["hf"] == {"models": 1, OURS: 1, PEER: 0}
    assert summary["of these, Torch-Pruning removes more"] == ["tv/a"]
    assert summary["of these, fxcompress removes more"] == []


def test_the_table_says_where_the_peer_removes_more() -> None:
    lines = zoo_peer.markdown(record()).splitlines()
    assert lines[0].startswith("4 public models (every third of the zoo, up to 32 million parameters)")
    assert "| exact | 4 | 2 |" in lines
    assert "| exact of 1 Hugging Face | 1 | 0 |" in lines
    assert lines[-1] == (
        "Both are exact on 2 models. Torch-Pruning removes more parameters of 1: tv/a (75%, 70%). "
        "fxcompress removes more parameters of 0."
    )


def test_a_second_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo.py").write_text(
        "from torch import nn\n"
        "def cases(sets):\n"
        "    for name in ('tv/a', 'tv/b', 'tv/c'):\n"
        "        yield name, lambda: nn.Linear(2, 2), None\n",
        encoding="utf-8",
    )
    path, asked = tmp_path / "out.json", []

    def pretend(tool: str, name: str, *_: Any) -> dict[str, Any]:
        asked.append((tool, name))
        return result(True, 0.5)

    monkeypatch.setattr(zoo_peer, "result_of", pretend)
    arguments = ["--zoo", str(tmp_path), "--every", "2", "--json", str(path)]
    assert zoo_peer.main(arguments) == 0
    assert sorted(asked) == [(PEER, "tv/a"), (PEER, "tv/c"), (OURS, "tv/a"), (OURS, "tv/c")]
    recorded = read_json(path)
    del recorded["rows"]["tv/c"][PEER]
    write_json(path, recorded)
    asked.clear()
    assert zoo_peer.main(arguments) == 0
    assert asked == [(PEER, "tv/c")]
    assert read_json(path)["summary"]["models"] == 2
