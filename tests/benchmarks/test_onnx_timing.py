"""Timing of ONNX files, and onnxruntime's own quantizers as the benchmarks call them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fxcompress
from benchmarks.onnx_timing import outputs, quantize_dynamic, quantize_static, speedups, timed
from fxcompress.graph.cost import Latency, compare_latency
from tests.helpers import ready


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ready(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    path = tmp_path_factory.mktemp("float") / "float.onnx"
    fxcompress.export_onnx(model.float(), path, torch.randn(2, 8))
    return path


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(str(path)).graph.node}


def test_a_speedup_is_the_median_of_the_rounds_ratios() -> None:
    latencies = {"float32": Latency((4.0, 9.0, 8.0)), "int8": Latency((2.0, 3.0, 1.0))}
    assert speedups(latencies) == {"int8": 3.0}


def test_a_clock_decides_what_a_second_is() -> None:
    ticks = iter(range(100))
    found = compare_latency({"a": lambda: None}, rounds=3, warmup=1, clock=lambda: float(next(ticks)))
    assert found["a"].seconds == (1.0, 1.0, 1.0)


def test_processor_time_leaves_out_sleep() -> None:
    found = compare_latency({"a": lambda: time.sleep(0.05)}, rounds=1, warmup=0, clock=time.process_time)
    assert found["a"].median < 0.04


def test_files_are_timed_and_quantized_ones_are_near(float_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [[rng.standard_normal((2, 8), np.float32)] for _ in range(4)]
    files = {"float32": float_file, "static": tmp_path / "static.onnx", "dynamic": tmp_path / "dynamic.onnx"}
    quantize_static(float_file, files["static"], batches)
    quantize_dynamic(float_file, files["dynamic"])
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(files["static"])
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators(files["dynamic"])
    assert set(speedups(timed(files, batches[0], rounds=2, warmup=1))) == {"static", "dynamic"}
    expected = np.concatenate(outputs(float_file, batches))
    for name in ("static", "dynamic"):
        got = np.concatenate(outputs(files[name], batches))
        assert 0 < np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
