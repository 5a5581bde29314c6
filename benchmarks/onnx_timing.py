"""Speed of ONNX files beside each other, and what onnxruntime's own quantizers make of a float file.

    latencies = timed({"float32": a, "static": b}, arrays)      # one session a file, one thread, alternated
    speedups(latencies)["static"]                               # median of the rounds' float32 / static

Process CPU time: what other processes do on the machine disturbs it least. A round runs every file once, in
reversed order every second round, and a ratio is the median over rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fxcompress.export.parity import open_session
from fxcompress.graph.cost import Latency, compare_latency

Array = NDArray[Any]


def fed(session: Any, arrays: Sequence[Array]) -> dict[str, Array]:
    """The inputs of a session by name, in their order."""
    return {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}


def timed(
    files: Mapping[str, str | os.PathLike[str]], arrays: Sequence[Array], *, rounds: int = 20, warmup: int = 3
) -> dict[str, Latency]:
    """Seconds of CPU time of every file on the same inputs, ``rounds`` runs each, alternated."""
    runs: dict[str, Callable[[], Any]] = {}
    for name, file in files.items():
        session = open_session(Path(file), threads=1)
        runs[name] = partial(session.run, None, fed(session, arrays))
    return compare_latency(runs, rounds=rounds, warmup=warmup, clock=time.process_time)


def speedups(latencies: Mapping[str, Latency], reference: str = "float32") -> dict[str, float]:
    """How many times faster than ``reference`` each of the others is: medians of per-round ratios."""
    base = latencies[reference]
    return {name: base.ratio_to(mine) for name, mine in latencies.items() if name != reference}


def quantize_static(
    file: str | os.PathLike[str],
    to: str | os.PathLike[str],
    batches: Sequence[Sequence[Array]],
    op_types: Collection[str] | None = None,
) -> None:
    """onnxruntime's static quantizer: QDQ, u8 activations (min–max), s8 per-channel weights, pre-processed.

    Args:
        batches: each the inputs of one run, in the order of the file's inputs.
        op_types: operators to quantize; all that it knows by default.
    """
    from onnxruntime import quantization  # type: ignore[import-untyped]

    with _pre_processed(file) as prepared:
        names = [value.name for value in open_session(Path(prepared), threads=1).get_inputs()]
        feeds = [dict(zip(names, arrays, strict=True)) for arrays in batches]
        quantization.quantize_static(
            prepared,
            to,
            _Batches(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=None if op_types is None else list(op_types),
        )


def quantize_dynamic(file: str | os.PathLike[str], to: str | os.PathLike[str]) -> None:
    """onnxruntime's dynamic quantizer: s8 per-channel weights, inputs over the range at hand."""
    from onnxruntime import quantization

    with _pre_processed(file) as prepared:
        quantization.quantize_dynamic(
            prepared, to, weight_type=quantization.QuantType.QInt8, per_channel=True
        )


class _Batches:
    """Batches in the form that onnxruntime's calibration reads: ``get_next`` until ``None``."""

    def __init__(self, feeds: Sequence[Mapping[str, Array]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next batch."""
        return next(self._left, None)


@contextmanager
def _pre_processed(file: str | os.PathLike[str]) -> Iterator[str]:
    """The file after ``quant_pre_process`` (shapes inferred, optimized), as long as the block runs."""
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]
        quant_pre_process,
    )

    with TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        quant_pre_process(str(file), prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        weights = {tensor.name for tensor in model.graph.initializer}
        kept = [value for value in model.graph.value_info if value.name not in weights]
        del model.graph.value_info[:]  # quantize_dynamic transposes weights and forgets to say so here
        model.graph.value_info.extend(kept)
        onnx.save(model, prepared)
        yield prepared


def outputs(file: str | os.PathLike[str], batches: Sequence[Sequence[Array]]) -> list[Array]:
    """The first output of the file for every batch of inputs."""
    session = open_session(Path(file), threads=1)
    return [np.asarray(session.run(None, fed(session, arrays))[0]) for arrays in batches]
