"""First convolutions of an integer graph, in a form for which onnxruntime has its fast kernel.

That kernel takes channels by four; an image has three, and is copied patch by patch instead. The same
integers (padding and added channels are zero points, added weights are zeros) come faster from

    four columns as channels     3 × 3 of 3 channels at stride 2 is 3 × 2 of 12: a window of two blocks, which
                                 gives two columns of the output, as channels that are columns again behind it
    a Pad to four channels       up to 3 × 3, where the columns do not come out even or outputs are many

The kernel's layout has channels last: there a Reshape makes channels of columns, and columns of channels, and
moves nothing. onnxruntime 1.31, x86-64 with VNNI, this convolution and what stands around it: a ResNet's 1.25
to 1.4 times as fast, a mobile net's 1.7 to 1.9, a VGG's 1.6 to 2, patches of 4 × 4 1.7 to 2. Larger kernels
and patches lose by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxcompress.export.integers import dequantized_weight, hold

_CHANNELS = 4
"""The kernel's step through input channels."""
_COLUMNS = 4
_LARGEST_FOLDED = 7
_LARGEST_PADDED = 3
_MOST_OUTPUTS = 128
"""More columns' outputs than these in one position cost a small kernel more than added channels do."""


@dataclass(frozen=True)
class _Stem:
    """``conv`` reads few channels: ``x`` → ``quantize`` → ``dequantize`` → ``conv``."""

    conv: Any
    quantize: Any
    dequantize: Any
    weight: Any
    """The initializer, int8 ``[out, in, rows, columns]``."""

    @property
    def name(self) -> str:
        """Of what the convolution gives."""
        return str(self.conv.outputs[0].name)

    @property
    def integers(self) -> NDArray[np.int8]:
        """The weight."""
        return np.asarray(self.weight.const_value.numpy())

    def ints(self, name: str) -> tuple[int, ...]:
        """A list attribute of the convolution."""
        return tuple(self.conv.attributes[name].as_ints())


@dataclass(frozen=True)
class _Folding:
    """How windows of columns become windows of blocks."""

    outputs: int
    """Columns of the output that one block gives."""
    lead: int
    """Blocks of padding in front, and behind."""
    trail: int
    blocks: int
    """Of one window."""
    first: int
    """The column, in its window of blocks, where the first output's window starts."""
    width: int
    """Columns of the output."""


def rewrite_stems(model: Any) -> None:
    """Rewrite every such convolution of ``model``, an ``onnxscript.ir.Model`` with quantizers."""
    from onnxscript.ir.passes.common import RemoveUnusedNodesPass

    for node in list(model.graph):
        stem = _stem_of(node)
        if stem is None:
            continue
        kernel, strides = stem.integers.shape[2:], stem.ints("strides")
        small = max(kernel) <= _LARGEST_PADDED
        overlap = any(size > stride for size, stride in zip(kernel, strides, strict=True))
        folding = _folding_of(stem)
        many = folding is not None and folding.outputs * len(stem.integers) > _MOST_OUTPUTS
        if folding is not None and not (small and many):
            _fold_columns(stem, folding)
        elif small and overlap:
            _pad_channels(stem)
    RemoveUnusedNodesPass()(model)


def _stem_of(node: Any) -> _Stem | None:
    """``node`` as a stem, ``None`` if it is none or its weight is another's too."""
    weights = dequantized_weight(node)
    dequantize = node.inputs[0].producer() if weights is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or len(weights.outputs[0].uses()) > 1:
        return None
    quantize = dequantize.inputs[0].producer()
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return None
    stem = _Stem(node, quantize, dequantize, weights.inputs[0])
    few = stem.integers.ndim == 4 and stem.integers.shape[1] < _CHANNELS
    plain = set(stem.ints("dilations")) == {1} and node.attributes["auto_pad"].as_string() == "NOTSET"
    return stem if few and plain else None


def _folding_of(stem: _Stem) -> _Folding | None:
    """The stem over blocks of columns; ``None`` where columns do not come out even, or windows are too large.

    A block gives the outputs whose windows start at ``i · stride − pad`` from its own start, for
    ``i < columns / stride``; the last padding is what the output's width,
    ``(width + pads − k) // stride + 1``, leaves.
    """
    kernel, stride = stem.integers.shape[2:], stem.ints("strides")[1]
    left, right = stem.ints("pads")[1::2]
    width = stem.conv.inputs[0].shape[3] if stem.conv.inputs[0].shape is not None else None
    if kernel[1] == 1 or max(kernel) > _LARGEST_FOLDED or _COLUMNS % stride or not isinstance(width, int):
        return None
    outputs = _COLUMNS // stride
    out = (width + left + right - kernel[1]) // stride + 1
    if width % _COLUMNS or out % outputs or (outputs > 1 and _requantizer(stem.conv) is None):
        return None
    lead = -(-left // _COLUMNS)
    first = _COLUMNS * lead - left
    blocks = -(-(first + (outputs - 1) * stride + kernel[1]) // _COLUMNS)
    trail = out // outputs - 1 + blocks - lead - width // _COLUMNS
    return _Folding(outputs, lead, trail, blocks, first, out) if trail >= 0 else None


def _requantizer(conv: Any) -> Any:
    """The quantizer behind ``conv`` and its activation, ``None`` if another reads what stands between."""
    value = conv.outputs[0]
    while not value.is_graph_output() and len(value.uses()) == 1:
        node = value.uses()[0].node
        if node.op_type == "QuantizeLinear":
            return node
        if node.op_type not in ("Relu", "Clip"):
            return None
        value = node.outputs[0]
    return None


def _fold_columns(stem: _Stem, folding: _Folding) -> None:
    """``[O, C, rows, k]`` as ``[outputs · O, 4 · C, rows, blocks]``, over four columns at a time."""
    integers, pads, stride = stem.integers, stem.ints("pads"), stem.ints("strides")
    out, channels, rows, columns = integers.shape
    window = np.zeros((folding.outputs, out, channels, rows, _COLUMNS * folding.blocks), integers.dtype)
    for i in range(folding.outputs):
        start = folding.first + i * stride[1]
        window[i, ..., start : start + columns] = integers
    split = window.reshape(folding.outputs, out, channels, rows, folding.blocks, _COLUMNS)
    regrouped = split.transpose(0, 1, 5, 2, 3, 4).reshape(-1, _COLUMNS * channels, rows, folding.blocks)
    width = stem.dequantize.outputs[0].shape[3] // _COLUMNS
    folded = _with_columns(stem, "folded", stem.quantize.outputs[0], width, _COLUMNS * channels)
    if folding.outputs > 1:
        _unfold(stem, folding)
    _feed(stem, folded, regrouped)
    _set_ints(
        stem.conv,
        kernel_shape=[rows, folding.blocks],
        strides=[stride[0], 1],
        pads=[pads[0], folding.lead, pads[2], folding.trail],
    )


def _unfold(stem: _Stem, folding: _Folding) -> None:
    """Let the convolution give every output several times; its readers get columns of them again."""
    conv, out = stem.conv, len(stem.integers)
    weights, requantizer = conv.inputs[1].producer(), _requantizer(conv)
    for index in range(1, len(weights.inputs)):  # scale and zero point; the integers come by themselves
        weights.replace_input_with(index, _repeated(stem, weights.inputs[index], folding.outputs))
    for index in range(2, len(conv.inputs)):
        conv.replace_input_with(index, _repeated(stem, conv.inputs[index], folding.outputs))
    value = requantizer.outputs[0]
    readers = [(use.node, use.idx) for use in value.uses()]
    unfolded = _with_columns(stem, "unfolded", value, folding.width, out)
    for node, index in readers:
        node.replace_input_with(index, unfolded)
    node = conv
    while node is not requantizer:
        node.outputs[0].shape = None  # no longer what it was; the session infers it
        node = node.outputs[0].uses()[0].node
    value.shape = None


def _repeated(stem: _Stem, value: Any, times: int) -> Any:
    """What holds one number an output channel, ``times`` over; a single number stays."""
    if value is None:
        return None
    name = f"{stem.name}_{value.name}"
    if value.const_value is None:
        before = value.producer()
        inputs = [_repeated(stem, each, times) for each in before.inputs]
        return _insert(stem, before.op_type, inputs, name, like=value, **before.attributes)
    numbers = np.asarray(value.const_value.numpy())
    if numbers.shape[:1] != stem.integers.shape[:1]:
        return value
    return hold(stem.conv.graph, name, np.tile(numbers, times))


def _pad_channels(stem: _Stem) -> None:
    """Four channels instead of fewer; the new ones are zero points, and meet weights of zero."""
    integers = stem.integers
    missing = _CHANNELS - integers.shape[1]
    widths = hold(stem.conv.graph, f"{stem.name}_widths", [0, 0, 0, 0, 0, missing, 0, 0])
    zero_point = stem.quantize.inputs[2]
    padded = _insert(stem, "Pad", [stem.quantize.outputs[0], widths, zero_point], f"{stem.name}_padded")
    _feed(stem, padded, np.pad(integers, ((0, 0), (0, missing), (0, 0), (0, 0))))


def _with_columns(stem: _Stem, name: str, value: Any, columns: int, channels: int) -> Any:
    """``value``, ``[N, C, H, W]`` with channels last in memory, as ``[N, channels, H, columns]``."""
    sizes = hold(stem.conv.graph, f"{stem.name}_{name}_sizes", [0, 0, columns, channels])
    last = _insert(stem, "Transpose", [value], f"{stem.name}_{name}_last", perm=[0, 2, 3, 1])
    moved = _insert(stem, "Reshape", [last, sizes], f"{stem.name}_{name}_moved")
    return _insert(stem, "Transpose", [moved], f"{stem.name}_{name}", perm=[0, 3, 1, 2])


def _insert(stem: _Stem, op: str, inputs: list[Any], name: str, like: Any = None, **attributes: Any) -> Any:
    """The output, of the element type of ``like`` or of the first input, of a new node behind that input."""
    from onnxscript import ir

    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name = f"{name}_out"
    node.outputs[0].type = (like or inputs[0]).type
    before = inputs[0].producer()
    if before is None:
        stem.conv.graph.insert_before(stem.conv, node)
    else:
        stem.conv.graph.insert_after(before, node)
    return node.outputs[0]


def _feed(stem: _Stem, quantized: Any, integers: NDArray[np.int8]) -> None:
    """Let the convolution read ``quantized``, and take ``integers`` for its weight."""
    from onnxscript import ir

    before = stem.dequantize
    name = f"{stem.name}_dequantized"
    inputs = [quantized, *before.inputs[1:]]
    stem.conv.replace_input_with(0, _insert(stem, "DequantizeLinear", inputs, name, like=before.outputs[0]))
    stem.weight.const_value = ir.tensor(np.ascontiguousarray(integers), name=stem.weight.name)
    for value in (stem.weight, stem.conv.inputs[1]):
        value.shape = ir.Shape(integers.shape)


def _set_ints(node: Any, **lists: Sequence[int]) -> None:
    from onnxscript import ir

    for name, values in lists.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
