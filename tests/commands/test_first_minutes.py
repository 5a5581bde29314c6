"""What three new users met in their first minutes, through the real executable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import fxcompress
from tests.commands.executable import error_line, facts, run

SORTER = '''
import torch
from torch import nn


class Sorter(nn.Module):
    """Two outputs by name; normalizes its images itself."""

    def __init__(self, classes):
        super().__init__()
        self.register_buffer("mean", torch.tensor([120.0, 115.0, 100.0]).view(1, 3, 1, 1))
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.label, self.damage = nn.Linear(8, classes), nn.Linear(8, 1)

    def forward(self, image):
        x = self.body(self.stem((image - self.mean) / 60).relu()).relu().mean((2, 3))
        return {"label": self.label(x), "damage": self.damage(x).sigmoid()}


def make(classes):
    torch.manual_seed(0)
    return Sorter(classes)


def seven():
    return make(7)


def half():
    return make(7).half()
'''
DATA = """
import torch


def dicts():
    torch.manual_seed(1)
    return [{"id": [1], "image": torch.rand(4, 3, 8, 8) * 255, "label": torch.arange(4)} for _ in range(3)]
"""
OWN = """
from typing import ClassVar

import torch
from fxcompress import quantization
from fxcompress.pruning import FilterPruner, register
from sorter.net import seven


@register
class LastPruner(FilterPruner):
    name: ClassVar[str] = "last"

    def score(self, layer):
        return torch.arange(len(layer.filters()))


@quantization.register
class Halves(quantization.Quantizer):
    name: ClassVar[str] = "halves"

    def quantize_weight(self, weight, **_):
        return (2 * weight).round() / 2


def never(module):
    raise RuntimeError("what was trained would be lost")
"""
GATED = """
from torch import nn


class Gated(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return super().forward(x)
        return x
"""
QUANTIZE = '[[config]]\nquant_bits = 8\nquantizer = "ptq"\n'
INPUT = ("--input", "2x3x8x8")
QUICKLY = ("--rounds", "0", "--no-page")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    (folder / "sorter").mkdir()
    for name, text in (("net", SORTER), ("data", DATA), ("own", OWN), ("__init__", "")):
        (folder / "sorter" / f"{name}.py").write_text(text)
    (folder / "quantize.toml").write_text(QUANTIZE)
    (folder / "own.toml").write_text('[[config]]\nsparsity = 0.5\npruner = "last"\nop_names = ["stem"]\n')
    torch.save({"a": object}, folder / "whole.pth")  # a class: what torch.save(model) holds, too
    return folder


def test_calibration_on_dicts_and_outputs_under_their_own_names(folder: Path) -> None:
    data = ("--data", "sorter.data:dicts", "--out", "named")
    done = run(
        "compress",
        "sorter.net:seven",
        "--config",
        "quantize.toml",
        *INPUT,
        *QUICKLY,
        *data,
        "--json",
        cwd=folder,
    )
    found = facts(done)
    assert (found["onnx"]["inputs"], found["onnx"]["outputs"]) == (["image"], ["label", "damage"])
    assert found["onnx"]["parity"]["mismatches"] == 0
    written = onnx.load(folder / "named" / "small.onnx")
    assert [output.name for output in written.graph.output] == ["label", "damage"]
    for file in ("small.onnx", "small.pt2"):
        run("run", f"named/{file}", *INPUT, "--out", f"{file}.npz", cwd=folder)
    fast, exact = (np.load(folder / f"small.{kind}.npz") for kind in ("onnx", "pt2"))
    assert fast["label"].shape == exact["label"].shape == (2, 7)
    assert np.abs(fast["label"] - exact["label"]).max() < 0.05 * np.abs(exact["label"]).max()


def test_without_calibration_nothing_is_written_that_does_not_round(folder: Path) -> None:
    arguments = ("--config", "quantize.toml", *INPUT, *QUICKLY, "--no-onnx", "--out", "nothing")
    done = run("compress", "sorter.net:seven", *arguments, cwd=folder)
    assert done.returncode == 1
    assert "this quantizer has seen no values yet" in done.stderr
    assert "On the command line: --data package.module:batches." in done.stderr
    assert not (folder / "nothing").exists()


def test_an_algorithm_that_the_models_module_registers_is_known(folder: Path) -> None:
    arguments = ("--config", "own.toml", *INPUT, *QUICKLY, "--no-onnx", "--out", "own", "--json")
    facts(run("compress", "sorter.own:seven", *arguments, cwd=folder))
    torch.manual_seed(0)
    stem = torch.nn.Conv2d(3, 8, 3)  # the first layer that the model makes
    small = fxcompress.load(folder / "own" / "small.pt2")
    assert torch.equal(small.get_parameter("stem.weight"), stem.weight[4:])


def test_a_quantizer_that_no_file_can_hold_is_refused_at_once(folder: Path) -> None:
    (folder / "rounding.toml").write_text('[[config]]\nquant_bits = 8\nquantizer = "halves"\n')
    arguments = ("--config", "rounding.toml", *INPUT, "--train-quantized", "sorter.own:never")
    assert error_line(run("compress", "sorter.own:seven", *arguments, cwd=folder)) == (
        "fxcompress: error: rounding.toml: quantizer 'halves' rounds by methods of Halves, which no file can "
        "hold; call fxcompress.compile and train in Python, or override fake_quantizer with a FakeQuantize"
    )


def test_a_path_for_a_module_is_answered_with_the_module(folder: Path) -> None:
    assert error_line(run("inspect", "sorter/net.py:seven", cwd=folder)) == (
        "fxcompress: error: 'sorter/net.py:seven': expected package.module:name, got a path; did you mean "
        "'sorter.net:seven'? Modules are looked for in the current folder"
    )


def test_a_factory_that_needs_arguments_says_how_they_are_given(folder: Path) -> None:
    assert error_line(run("inspect", "sorter.net:make", *INPUT, cwd=folder)) == (
        "fxcompress: error: sorter.net:make needs classes; give arguments as JSON: --model-args "
        "'{\"classes\": …}', or name a function that needs none"
    )
    found = facts(
        run("inspect", "sorter.net:make", "--model-args", '{"classes": 5}', *INPUT, "--json", cwd=folder)
    )
    assert found["layers"][-2]["output"] == ["n", 5]


def test_a_checkpoint_for_the_model_says_where_it_belongs(folder: Path) -> None:
    assert error_line(run("inspect", "whole.pth", cwd=folder)) == (
        "fxcompress: error: whole.pth: a checkpoint is loaded into a model: name what makes that, "
        "package.module:name, and give the file with --weights whole.pth"
    )


def test_a_pickled_model_for_weights_is_not_loaded(folder: Path) -> None:
    line = error_line(run("inspect", "sorter.net:seven", "--weights", "whole.pth", *INPUT, cwd=folder))
    assert line == (
        "fxcompress: error: --weights whole.pth: holds Python objects, which are not loaded, for they could "
        "run any code; expected a state dict, plain tensors by name, written by safetensors or by "
        "torch.save(model.state_dict(), …)"
    )


def test_a_model_in_half_precision_is_not_quantized(folder: Path) -> None:
    halves = ("--input", "2x3x8x8:float16", "--config", "quantize.toml", "--data", "sorter.data:dicts")
    done = run("compress", "sorter.net:half", *halves, "--out", "halves", cwd=folder)
    assert done.returncode == 1
    assert "'stem.weight' is float16: quantization starts from float32; call .float() where" in done.stderr


def test_a_module_of_ones_own_that_hides_a_package_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("x = 1\n")
    (tmp_path / "quantize.toml").write_text(
        QUANTIZE.replace("quant_bits = 8", "sparsity = 0.5").split("quant")[0]
    )
    done = run("compress", "sorter.net:seven", "--config", "quantize.toml", *INPUT, cwd=tmp_path, path=folder)
    assert done.returncode == 1
    hidden = tmp_path / "onnx.py"
    assert f"{hidden} hides a package of the same name: rename it, or start in another folder" in done.stderr


def test_a_damaged_onnx_file_is_called_damaged(folder: Path) -> None:
    (folder / "broken.onnx").write_bytes(b"\x08\x0a\xff\xff\xff")
    done = run("run", "broken.onnx", cwd=folder)
    assert done.returncode == 1
    assert "The file is damaged, or is no ONNX model: get it again, or export it again." in done.stderr


def test_inspect_names_its_own_option_for_inputs(folder: Path) -> None:
    done = run("inspect", "sorter.net:seven", cwd=folder)
    assert "(found from the first layers; choose with --input)" in done.stdout


def test_torch_prints_nothing_of_its_own_about_a_failed_capture(tmp_path: Path) -> None:
    (tmp_path / "gated.py").write_text(GATED)
    done = run("inspect", "gated:Gated", "--input", "2x4", cwd=tmp_path)
    assert done.returncode == 1
    first, *more = done.stderr.splitlines()
    assert first.startswith(f"fxcompress: error: Gated cannot be captured at {tmp_path / 'gated.py'}:10 (")
    assert len(more) == 1
