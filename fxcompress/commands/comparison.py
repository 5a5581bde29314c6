"""``fxcompress compress``, before and after: latencies, what integers gain, and a table of it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.commands.found import row, table
from fxcompress.commands.gain import without_gain

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from fxcompress.graph.cost import Latency
    from fxcompress.graph.inputs import Inputs
    from fxcompress.graph.module import CompiledModule
    from fxcompress.page import Timing

Latencies = dict[str, "Latency"]
_PLAIN = "float32"
"""The file of the small model before its quantization."""


class Comparison:
    """Latencies of one call on the example inputs, on one thread, the models in turn.

    ``torch``: of ``dense`` and ``small`` in PyTorch, in floating point. ``onnx``: of the files in
    onnxruntime, ``dense``, ``small``, and, of a quantized one, ``small`` in ``float32``; empty without any.
    """

    def __init__(
        self, dense: CompiledModule, small: CompiledModule, files: Mapping[str, Path], rounds: int
    ) -> None:
        from fxcompress.commands.runners import OnnxRunner
        from fxcompress.graph.cost import compare_latency
        from fxcompress.report import dense_of

        self.inputs, self.rounds, self.quantized = dense.example_inputs, rounds, _PLAIN in files
        self.torch = _in_torch({"dense": dense_of(dense), "small": small}, self.inputs, rounds)
        calls = {name: OnnxRunner(path, 1).bound(self.inputs) for name, path in files.items()}
        self.onnx: Latencies = compare_latency(calls, rounds=rounds) if calls else {}

    def facts(self) -> dict[str, Any]:
        """For ``report.json``: seconds by runtime."""
        found = {}
        for runtime, both in (("PyTorch", self.torch), ("onnxruntime", self.onnx)):
            if both:
                found[runtime] = {
                    "before": both["dense"].to_dict(),
                    "after": both["small"].to_dict(),
                    "ratio": both["small"].ratio_to(both["dense"]),
                }
        if self.quantized:
            found["onnxruntime"]["after_float32"] = self.onnx[_PLAIN].to_dict()
            found["onnxruntime"]["ratio_to_float32"] = self.onnx["small"].ratio_to(self.onnx[_PLAIN])
        return found

    def advice(self, name: str) -> str | None:
        """A line about the quantized file ``name``, if integers make it no faster than it is in float32."""
        if not self.quantized:
            return None
        ratio = self.onnx["small"].ratio_to(self.onnx[_PLAIN])
        return without_gain(name, "the same model in float32", ratio)

    def timings(self) -> list[Timing]:
        """For the page."""
        from fxcompress.page import Timing

        how = f"one call on the example inputs, one thread, the median of {self.rounds} calls that alternate."
        rounding = ", not quantized" if self.quantized else ""
        of_modules = f"{how} Before is the dense model, without masks; after is the small one"
        found = [Timing("PyTorch", self.torch["dense"], self.torch["small"], f"{of_modules}{rounding}.")]
        if self.onnx:
            rounding = ", quantized" if self.quantized else ""
            of_files = f"{how} Before is the dense model's float32 file; after is small.onnx{rounding}."
            found.append(Timing("onnxruntime", self.onnx["dense"], self.onnx["small"], of_files))
        return found


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread for the duration."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_torch(modules: Mapping[str, nn.Module], inputs: Inputs, rounds: int) -> Latencies:
    import torch

    from fxcompress.graph.cost import compare_latency
    from fxcompress.graph.module import eval_mode

    args, kwargs = inputs
    calls: dict[str, Callable[[], Any]] = {n: partial(m, *args, **kwargs) for n, m in modules.items()}
    with one_thread(), eval_mode(modules["dense"]), eval_mode(modules["small"]), torch.inference_mode():
        return compare_latency(calls, rounds=rounds)


def comparison_table(facts: Mapping[str, Any]) -> Table:
    """Before and after: metric, parameters, MACs, bytes, latency."""
    report, onnx = facts["report"], facts["onnx"]
    made = table(f"{facts['model']}: before and after", "", "before", "after", "change")
    for name, (before, after) in facts["metrics"].items():
        row(made, name, f"{before:.4g}", f"{after:.4g}", f"{after - before:+.3g}")
    amounts = {
        "parameters": report["parameters"],
        "MACs per example": report["macs"],
        "weights, bytes": report["bytes"],
        "ONNX file, bytes": onnx and {"before": onnx["bytes_before"], "after": onnx["bytes"]},
    }
    for name, amount in amounts.items():
        if amount:
            before, after = amount["before"], amount["after"]
            words = ("smaller", "larger") if "bytes" in name else ("fewer", "more")
            row(made, name, before, after, _change(after / max(before, 1), *words))
    for runtime, times in facts.get("latency", {}).items():
        before, after = (f"{1e3 * times[when]['median']:.3f}" for when in ("before", "after"))
        what = " (not quantized)" if facts["quantized"] and runtime == "PyTorch" else ""
        row(made, f"{runtime}{what}, ms", before, after, _change(times["ratio"], "faster", "slower"))
    return made


def _change(ratio: float, less: str, more: str) -> str:
    """``after / before`` in words."""
    if ratio == 1:
        return "none"
    return f"{1 / max(ratio, 1e-9):.2f}× {less}" if ratio < 1 else f"{ratio:.2f}× {more}"
