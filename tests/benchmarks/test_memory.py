"""Memory: what is measured, and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory, memory_case
from benchmarks.memory_case import COMPRESS, TRAIN, of_inference, of_work, tiny
from benchmarks.results_file import ROOT, read_json
from fxcompress.graph.cost import count_bytes

MIB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


def in_a_fresh_process(code: str) -> dict[str, int]:
    """What ``found`` is behind ``code``: what others freed before would be used again, and hide a rise."""
    lines = [
        "import json, torch",
        "from benchmarks.memory_case import measured",
        code,
        "print(json.dumps(found))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_rise_is_the_peak_and_held_is_what_stays() -> None:
    found = in_a_fresh_process("""
def work():
    passing = torch.ones(96 * 2**20, dtype=torch.uint8)
    kept = torch.ones(32 * 2**20, dtype=torch.uint8)
    del passing
    return kept

found = measured(work)""")
    assert 127 * MIB <= found["rise"] <= 136 * MIB
    assert 31 * MIB <= found["held"] <= 40 * MIB


def test_an_earlier_peak_does_not_hide_the_rise() -> None:
    found = in_a_fresh_process("""
torch.ones(256 * 2**20, dtype=torch.uint8)
found = measured(lambda: torch.ones(32 * 2**20, dtype=torch.uint8))""")
    assert 31 * MIB <= found["rise"] <= 40 * MIB


@pytest.mark.parametrize("tool", list(COMPRESS))
def test_every_tool_compresses_the_same_half(tool: str) -> None:
    if tool == "Torch-Pruning":
        pytest.importorskip("torch_pruning")
    small = COMPRESS[tool](tiny().eval(), torch.randn(2, 3, 8, 8))
    stem, second, norm = 4 * 28 + 8, 4 * 4 * 9 + 4, 2 * 4
    head = 4 * 4 + 4 + 10 * 4 + 10
    assert sum(parameter.numel() for parameter in small.parameters()) == stem + second + norm + head


@pytest.mark.parametrize("tool", ["plain", "masks", "fake-quantize"])
def test_training_is_measured_on_the_model_given(tool: str) -> None:
    found = of_work(TRAIN[tool], tiny, lambda: torch.randn(2, 3, 8, 8))
    assert found["model"] == count_bytes(tiny())
    assert found["imports"] == found["before"] - found["model"]
    assert 0 <= found["rise"] < 64 * MIB


def test_a_file_is_loaded_and_run(tmp_path: Path) -> None:
    import fxcompress

    images = torch.randn(2, 3, 8, 8)
    fxcompress.save(fxcompress.capture(tiny().eval(), (images,)), tmp_path / "dense.pt2")
    found = of_inference(tmp_path / "dense.pt2", images)
    assert found["file"] == (tmp_path / "dense.pt2").stat().st_size
    assert found["rise"] < 64 * MIB


def test_an_obstacle_is_the_result(tmp_path: Path) -> None:
    (tmp_path / "zoo.py").write_text("def cases(sets):\n    return iter(())\n", encoding="utf-8")
    asked = f'{{"zoo": "{tmp_path}", "kind": "training", "tool": "plain", "model": "tv/none", "batch": 1}}'
    memory_case.main(asked, str(tmp_path / "row.json"))
    row = read_json(tmp_path / "row.json")
    assert row == {"obstacle": "LookupError: the zoo has no model named 'tv/none'"}


def figures(rise: int, model: int = 10 * MIB, file: int = 5 * MIB) -> dict[str, Any]:
    return {"imports": 300 * MIB, "model": model, "before": 310 * MIB, "rise": rise, "held": 0, "file": file}


def test_ratios_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    rises = {
        "fxcompress": 50, "fxcompress, verify=False": 30, "Torch-Pruning": 15,
        "plain": 100, "masks": 120, "fake-quantize": 150,
        "dense.pt2": 40, "small.pt2": 10,
    }  # fmt: skip

    def pretend(_: Path, kind: str, tool: str, *__: Any) -> dict[str, Any]:
        if kind == "files":
            return {memory.DENSE: "dense.pt2", "PyTorch, pruned": "small.pt2"}
        return figures(rises[tool] * MIB) if tool in rises else {"obstacle": "ValueError: no"}

    monkeypatch.setattr(memory, "in_process", pretend)
    record = {
        "compress": memory.compressing(Path(), ("tv/a",)),
        "training": memory.training(Path()),
        "inference": memory.inference(Path()),
    }
    lines = memory.markdown(record).splitlines()
    assert "| tv/a | 10 | 5.0 | 3.0 | 1.5 |" in lines
    assert "| fake-quantize | 150 | 1.50 |" in lines
    assert "| torchao | fails | |" in lines
    assert "| PyTorch, pruned | 10 | 0.25 | 5 | 1.00 |" in lines
    assert "300 MiB (fxcompress) and 300 MiB (Torch-Pruning)" in lines[0]
