"""Quantized files that are no faster than float32 ones, in the commands that measure both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.cli import main
from fxcompress.commands.bench import _advice
from fxcompress.commands.comparison import Comparison
from fxcompress.commands.gain import is_quantized, without_gain
from fxcompress.graph.cost import Latency
from fxcompress.graph.module import CompiledModule
from tests.helpers import ready

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def module(quantized: bool) -> CompiledModule:
    torch.manual_seed(0)
    net = ready(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))).float()
    if not quantized:
        return fxcompress.capture(net, X)
    return fxcompress.compile(net, [{"quant_bits": 8, "quantizer": "ptq"}], X, data=[X])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in float32 and in integers."""
    folder = tmp_path_factory.mktemp("gain")
    made = {name: folder / f"{name}.onnx" for name in ("float", "int8")}
    for name, path in made.items():
        fxcompress.export_onnx(module(name == "int8"), path, verify=False)
    return made


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (0.95, None),
        (0.96, "a is no faster than b in onnxruntime (0.96 of its time)"),
        (1.04, "a is no faster than b in onnxruntime (1.04 of its time)"),
        (1.5, "a is slower than b in onnxruntime (1.50 of its time)"),
    ],
)
def test_a_gain_of_less_than_a_twentieth_is_none(ratio: float, told: str | None) -> None:
    line = without_gain("a", "b", ratio)
    assert line is None if told is None else line is not None and line.startswith(f"{told}: ")


def test_the_line_names_the_remedy() -> None:
    line = without_gain("a", "b", 2.0) or ""
    assert "fxcompress.partial_quantization" in line
    assert "docs/quantization.md" in line
    assert "\n" not in line


def test_quantized_files_are_known_by_their_nodes(files: dict[str, Path]) -> None:
    assert {name: is_quantized(path) for name, path in files.items()} == {"float": False, "int8": True}


def seconds(*values: float) -> Latency:
    return Latency(values)


def test_bench_compares_with_the_fastest_float_file(files: dict[str, Path], tmp_path: Path) -> None:
    slow = tmp_path / "slow.onnx"
    slow.write_bytes(files["float"].read_bytes())
    times = {slow: seconds(9.0, 9.0), files["float"]: seconds(2.0, 1.0), files["int8"]: seconds(3.0, 1.5)}
    (line,) = _advice(times)
    assert line.startswith(
        f"{files['int8']} is slower than {files['float']}, in float32, in onnxruntime (1.50"
    )
    assert _advice({**times, files["int8"]: seconds(1.0, 0.5)}) == []
    assert _advice({files["int8"]: seconds(1.0), tmp_path / "float.pt2": seconds(0.5)}) == []


@pytest.mark.parametrize("faster", [True, False])
def test_bench_prints_the_line_once(
    files: dict[str, Path], faster: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {str(files["float"]): seconds(2.0), str(files["int8"]): seconds(1.0 if faster else 2.0)}
    monkeypatch.setattr("fxcompress.graph.cost.compare_latency", lambda *_, **__: times)
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["bench", str(files["float"]), str(files["int8"])]) == 0
    assert capsys.readouterr().out.count("is no faster than") == (0 if faster else 1)


def test_compress_compares_with_the_small_model_in_float(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = module(False)
    onnx = {"dense": seconds(8.0), "small": seconds(3.0), "float32": seconds(2.0)}
    times = [{"dense": seconds(6.0), "small": seconds(4.0)}, onnx]
    monkeypatch.setattr("fxcompress.graph.cost.compare_latency", lambda *_, **__: times.pop(0))
    paths = {"dense": files["float"], "small": files["int8"], "float32": files["float"]}
    compared = Comparison(dense, dense, paths, 1)
    facts = compared.facts()
    assert (facts["PyTorch"]["ratio"], facts["onnxruntime"]["ratio"]) == (4 / 6, 3 / 8)
    assert facts["onnxruntime"]["ratio_to_float32"] == 1.5
    told = "small.onnx is slower than the same model in float32 in onnxruntime (1.50 of its time)"
    assert (compared.advice("small.onnx") or "").startswith(told)
    torch_timing, onnx_timing = compared.timings()
    assert (torch_timing.before, onnx_timing.after) == (seconds(6.0), seconds(3.0))
    assert "after is the small one, not quantized." in torch_timing.told
    assert "after is small.onnx, quantized." in onnx_timing.told


def test_a_float_model_gets_no_advice(files: dict[str, Path]) -> None:
    dense = module(False)
    compared = Comparison(dense, dense, {"dense": files["float"], "small": files["float"]}, 2)
    assert compared.advice("small.onnx") is None
    assert set(compared.facts()["onnxruntime"]) == {"before", "after", "ratio"}
