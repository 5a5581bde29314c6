"""First convolutions of an integer graph, in a form for which onnxruntime has its fast kernel.

That kernel takes channels by four; an image has three, and is copied patch by patch instead. The same
integers (padding and added channels are zero points, added weights are zeros) come faster from

    stride 2         SpaceToDepth(2) of the image, and a stride of 1: 7 × 7 of 3 channels is 4 × 4 of 12
    up to 3 × 3      a Pad to four channels, behind the quantizer

onnxruntime 1.31, x86-64 with VNNI, this convolution alone: a ResNet's 1.4 to 2 times as fast, a mobile net's
1.2 to 1.7, a VGG's 2 to 2.5. Patches that do not overlap and larger kernels of other strides only lose by it.
SpaceToDepth stands in front of the quantizer: onnxruntime up to 1.26 has none for 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = 4
"""The kernel's step through input channels."""
_BLOCK = 2
_LARGEST_PADDED = 3


@dataclass(frozen=True)
class _Stem:
    """``conv`` reads few channels: ``x`` → ``quantize`` → ``dequantize`` → ``conv``."""

    conv: Any
    quantize: Any
    dequantize: Any
    weight: Any
    """The initializer, int8 ``[out, in, rows, columns]``."""

    @property
    def integers(self) -> NDArray[np.int8]:
        """The weight."""
        return np.asarray(self.weight.const_value.numpy())

    def ints(self, name: str) -> tuple[int, ...]:
        """A list attribute of the convolution."""
        return tuple(self.conv.attributes[name].as_ints())


def rewrite_stems(model: Any) -> None:
    """Rewrite every such convolution of ``model``, an ``onnxscript.ir.Model`` with quantizers."""
    for node in list(model.graph):
        stem = _stem_of(node)
        if stem is None:
            continue
        kernel = stem.integers.shape[2:]
        if stem.ints("strides") == (_BLOCK, _BLOCK) and min(kernel) > _BLOCK and _divides(stem):
            _space_to_depth(stem)
        elif max(kernel) <= _LARGEST_PADDED and any(
            size > stride for size, stride in zip(kernel, stem.ints("strides"), strict=True)
        ):
            _pad_channels(stem)


def _stem_of(node: Any) -> _Stem | None:
    """``node`` as a stem, ``None`` if it is none or its weight is another's too."""
    if node.op_type != "Conv" or node.domain or node.attributes["group"].as_int() != 1:
        return None
    dequantize, weights = (node.inputs[i].producer() for i in (0, 1))
    if any(made is None or made.op_type != "DequantizeLinear" for made in (dequantize, weights)):
        return None
    quantize, weight = dequantize.inputs[0].producer(), weights.inputs[0]
    if quantize is None or quantize.op_type != "QuantizeLinear" or weight.const_value is None:
        return None
    symmetric = not any(zero.const_value.numpy().any() for zero in weights.inputs[2:])
    alone = len(weight.uses()) == 1 and len(weights.outputs[0].uses()) == 1
    stem = _Stem(node, quantize, dequantize, weight)
    few = stem.integers.ndim == 4 and stem.integers.shape[1] < _CHANNELS
    plain = set(stem.ints("dilations")) == {1} and node.attributes["auto_pad"].as_string() == "NOTSET"
    return stem if symmetric and alone and few and plain else None


def _divides(stem: _Stem) -> bool:
    """Whether the image is whole blocks, known as such, and not made by an integer kernel."""
    image = stem.quantize.inputs[0]
    sizes = image.shape[2:] if image.shape is not None else ()
    return (
        len(sizes) == 2
        and all(isinstance(size, int) and size % _BLOCK == 0 for size in sizes)
        and not _comes_of_integers(image)
    )


def _comes_of_integers(value: Any) -> bool:
    """Whether a quantizer stands anywhere in front of ``value``: its kernel would be parted from it."""
    pending, seen = [value], {value}
    while pending:
        node = pending.pop().producer()
        if node is None:
            continue
        if node.op_type == "DequantizeLinear":
            return True
        before = {read for read in node.inputs if read is not None} - seen
        seen |= before
        pending += before
    return False


def _space_to_depth(stem: _Stem) -> None:
    """``[C, k, k]`` at stride 2 as ``[4·C, K, K]`` at stride 1, over blocks of 2 × 2 positions.

    ``K`` blocks from ``ceil(pad / 2)`` blocks before a position hold its window; the last padding is what the
    output's size, ``(size + pads − k) // 2 + 1``, leaves.
    """
    integers, pads, image = stem.integers, stem.ints("pads"), stem.quantize.inputs[0]
    sizes = tuple(image.shape[2:])
    out, channels, *kernel = integers.shape
    lead = [-(-pad // _BLOCK) for pad in pads[:2]]
    offsets = [_BLOCK * blocks - pad for blocks, pad in zip(lead, pads[:2], strict=True)]
    blocks = [-(-(offset + size) // _BLOCK) for offset, size in zip(offsets, kernel, strict=True)]
    lengths = [(sizes[i] + pads[i] + pads[i + 2] - kernel[i]) // _BLOCK + 1 for i in (0, 1)]
    trail = [lengths[i] + blocks[i] - 1 - lead[i] - sizes[i] // _BLOCK for i in (0, 1)]
    window = np.zeros((out, channels, _BLOCK * blocks[0], _BLOCK * blocks[1]), integers.dtype)
    window[:, :, offsets[0] : offsets[0] + kernel[0], offsets[1] : offsets[1] + kernel[1]] = integers
    split = window.reshape(out, channels, blocks[0], _BLOCK, blocks[1], _BLOCK)
    # The channels that SpaceToDepth gives go by row in the block, column, channel.
    regrouped = split.transpose(0, 3, 5, 1, 2, 4).reshape(out, -1, *blocks)
    depth = _insert(stem, "SpaceToDepth", [image], image, blocksize=_BLOCK)
    scaled = [depth, *stem.quantize.inputs[1:]]
    quantized = _insert(stem, "QuantizeLinear", scaled, stem.quantize.outputs[0])
    _feed(stem, quantized, regrouped)
    _set_ints(stem.conv, kernel_shape=blocks, strides=[1, 1], pads=[*lead, *trail])


def _pad_channels(stem: _Stem) -> None:
    """Four channels instead of fewer; the new ones are zero points, and meet weights of zero."""
    from onnxscript import ir

    integers = stem.integers
    missing = _CHANNELS - integers.shape[1]
    source = stem.quantize.outputs[0]
    name = f"{stem.conv.outputs[0].name}_widths"
    widths = ir.val(name, const_value=ir.tensor([0, 0, 0, 0, 0, missing, 0, 0]))
    stem.conv.graph.register_initializer(widths)
    padded = _insert(stem, "Pad", [source, widths, stem.quantize.inputs[2]], source)
    _feed(stem, padded, np.pad(integers, ((0, 0), (0, missing), (0, 0), (0, 0))))


def _insert(stem: _Stem, op: str, inputs: list[Any], like: Any, **attributes: int) -> Any:
    """The output, of the element type of ``like``, of a new node in front of the convolution."""
    from onnxscript import ir

    name = f"{stem.conv.outputs[0].name}_{op}"  # of one convolution only
    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name = f"{name}_out"
    node.outputs[0].type = like.type
    stem.conv.graph.insert_before(stem.conv, node)
    return node.outputs[0]


def _feed(stem: _Stem, quantized: Any, integers: NDArray[np.int8]) -> None:
    """Let the convolution read ``quantized``, and take ``integers`` for its weight."""
    from onnxscript import ir

    conv, before = stem.conv, stem.dequantize
    dequantized = _insert(stem, "DequantizeLinear", [quantized, *before.inputs[1:]], before.outputs[0])
    conv.replace_input_with(0, dequantized)
    for unread in (before, stem.quantize):
        if not unread.outputs[0].uses():
            conv.graph.remove(unread, safe=True)
    stem.weight.const_value = ir.tensor(np.ascontiguousarray(integers), name=stem.weight.name)
    for value in (stem.weight, conv.inputs[1]):
        value.shape = ir.Shape(integers.shape)


def _set_ints(node: Any, **lists: list[int]) -> None:
    from onnxscript import ir

    for name, values in lists.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
