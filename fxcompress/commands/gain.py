"""Whether integers make an ONNX file faster, and what to do where they do not."""

from __future__ import annotations

from pathlib import Path

GAIN = 0.95
"""A quantized file that takes more of the float32 file's time is told to gain nothing: less is within what
medians of a busy machine differ by.
"""
_ROUNDING = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"})


def without_gain(name: str, other: str, ratio: float) -> str | None:
    """A line about the quantized file ``name`` that takes ``ratio`` of the time of ``other``, if not less."""
    if ratio <= GAIN:
        return None
    told = "slower than" if ratio > 1 / GAIN else "no faster than"
    return (
        f"{name} is {told} {other} in onnxruntime ({ratio:.2f} of its time): leave layers float that gain "
        "nothing from integers; fxcompress.partial_quantization measures how many can be "
        "(docs/quantization.md)"
    )


def is_quantized(path: Path) -> bool:
    """Whether an ONNX file has quantizers or integer weights behind one."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return any(node.op_type in _ROUNDING for node in graph.node)
