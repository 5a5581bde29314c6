"""Lower linear layers that are not integers all through: weights in groups, and inputs rounded dynamically.

    linear(x, fq_groups(w), b)      →  matmul_nbits(x, Q, S, Z) + b         Q, Z: uint8, 4 or 8 bits packed
    linear(fq_blocks(x), fq_groups(w), b)    →  the same at accuracy level 4, which rounds x in blocks
    linear(fq_dynamic(x), fq(w), b) →  dynamic_matmul(x, W, s_w) + b        W: int8 [in, out]

Law: the module computes what it computed in eval mode, up to the order of float additions. ``MatMulNBits``
has kernels for 4 and 8 bits; weights of other widths are written as the floats that they are rounded to, and
a note says so. Edits in place (``fxcompress.kernels`` has the operators).
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress import ops
from fxcompress.errors import PassError
from fxcompress.graph.calls import Call, TensorInfo, call_of
from fxcompress.graph.constants import Constants
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.operands import add_buffer, operand_node, read_tensor
from fxcompress.kernels import pack  # its import registers the operators
from fxcompress.numerics.blocks import BlockFakeQuantize
from fxcompress.numerics.dynamic import DynamicFakeQuantize
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grouped import GroupFakeQuantize
from fxcompress.passes.insert_fake_quant import quantizer_name

PACKED_BITS = (4, 8)
"""The widths that onnxruntime's ``MatMulNBits`` computes with on every platform."""


def lower_linear(module: CompiledModule) -> tuple[str, ...]:
    """Lower what can be lowered.

    Returns:
        Remarks on weights that are written as floats.

    Raises:
        PassError: if a quantizer has seen no values yet, or a layer's weight has no integers.
    """
    lowering = _Lowering(module)
    for node in list(module.graph.nodes):
        lowering.constants.see(node)
        call = call_of(node)
        if call is not None and call.op == "linear":
            lowering.visit(call)
    return tuple(lowering.notes)


def quantizer_of(module: CompiledModule, value: Any) -> tuple[str, FakeQuantize] | None:
    """The name and the quantizer that rounds ``value``, where a fake-quantize node yields it and rounds."""
    if not isinstance(value, fx.Node) or value.target is not ops.fake_quantize:
        return None
    found = module.get_submodule(str(value.args[1].target))  # type: ignore[union-attr]
    return (quantizer_name(value), found) if isinstance(found, FakeQuantize) and found.quantizing else None


def settled(name: str, quantizer: FakeQuantize, value: Tensor | None) -> FakeQuantize:
    """``quantizer`` with its scale and zero point; of a weight over the range at hand those of ``value``.

    Raises:
        PassError: if it has seen no values yet.
    """
    if value is not None and quantizer.calibrating and quantizer.observing:
        with torch.no_grad():
            quantizer.observe(value)
    if not quantizer.is_calibrated:
        raise PassError(
            f"{name!r}: this quantizer has seen no values yet; run the "
            "model on data in train mode, or calibrate it (data=...)"
        )
    return quantizer


class _Lowering:
    def __init__(self, module: CompiledModule) -> None:
        self.module, self.graph = module, module.graph
        self.constants = Constants(module)
        self.notes: list[str] = []
        self._written: dict[tuple[Any, ...], str] = {}

    def visit(self, call: Call) -> None:
        weight, x = call.get("weight"), call.get("input")
        found, rounding = quantizer_of(self.module, weight), quantizer_of(self.module, x)
        if found is not None and isinstance(found[1], GroupFakeQuantize):
            name, quantizer = found[0], found[1]
            value = self._value(name, weight)
            settled(name, quantizer, value)
            blocks = rounding if rounding and isinstance(rounding[1], BlockFakeQuantize) else None
            if quantizer.grid.bits in PACKED_BITS and value.dtype == torch.float32:
                self._pack(call, name, quantizer, value, x.args[0] if blocks else None)
            elif blocks:
                raise PassError(
                    f"{blocks[0]!r} rounds in blocks, as MatMulNBits does for float32 and weights of 4 or 8 "
                    f"bits; {call.module or call.node} has {quantizer.grid.bits} bits and {value.dtype}; "
                    "call module.float(), or give 'quant_types': ['weight']"
                )
            else:
                self._dequantize(call, name, quantizer, value)
        elif rounding is not None and isinstance(rounding[1], DynamicFakeQuantize):
            if found is None or not (found[1].grid.signed and found[1].grid.symmetric):
                raise PassError(
                    f"{rounding[0]!r} rounds dynamically, and the weight of {call.module or call.node} has "
                    "no signed symmetric integers to multiply with; quantize both, or neither"
                )
            name, held = found
            value = self._value(name, weight)
            self._dynamic(call, x.args[0], name, settled(name, held, value), value)

    def _value(self, name: str, weight: fx.Node) -> Tensor:
        value = self.constants.of(weight.args[0])
        if value is None:
            raise PassError(
                f"{name!r}: the weight depends on the model's input, so it has no integers to store; "
                "exclude the layer in the config list"
            )
        return value

    def _pack(
        self, call: Call, name: str, quantizer: GroupFakeQuantize, value: Tensor, unrounded: Any
    ) -> None:
        """``unrounded``: the input that the kernel itself is to round in blocks, if it is."""
        bits, (features, inputs) = quantizer.grid.bits, value.shape
        integers, zeros = quantizer.unsigned(value)
        blocks = integers.reshape(features, -1, quantizer.group_size)
        scales = quantizer.scale.detach().reshape(features, -1)
        before = call.node
        packed = self._buffer(f"{name}_packed", pack(blocks, bits), before)
        scale = self._buffer(f"{name}_scale", scales, before)
        zero = None
        if bool((zeros != 1 << (bits - 1)).any()):
            zero = self._buffer(f"{name}_zero_point", pack(zeros, bits), before)
        x = operand_node(self.module, call.node, "input") if unrounded is None else unrounded
        level = 0 if unrounded is None else 4
        facts = (packed, scale, zero, inputs, features, bits, quantizer.group_size, level)
        self._replace(call, torch.ops.fxcompress.matmul_nbits.default, (x, *facts))

    def _dequantize(self, call: Call, name: str, quantizer: GroupFakeQuantize, value: Tensor) -> None:
        """The weight as the floats it is rounded to."""
        with torch.no_grad():
            rounded = quantizer.simulate(value).contiguous()
        weight: fx.Node = call.args["weight"]
        weight.replace_all_uses_with(self._buffer(f"{name}_rounded", rounded, weight))
        self.notes.append(
            f"{call.module or call.node}: weights of {quantizer.grid.bits} bits are written as "
            f"{str(value.dtype).removeprefix('torch.')}: onnxruntime's MatMulNBits has "
            f"{' and '.join(map(str, PACKED_BITS))} bits and reads float32"
        )

    def _dynamic(self, call: Call, x: Any, name: str, quantizer: FakeQuantize, value: Tensor) -> None:
        if value.dtype != torch.float32:
            raise PassError(
                f"{name!r}: DynamicQuantizeLinear reads float32, and the layer is {value.dtype}; call "
                "module.float() first"
            )
        integers = quantizer.integers(value).to(torch.int8)
        weight = self._buffer(f"{name}_integers", integers.T.contiguous(), call.node)
        scale = self._buffer(f"{name}_scale", quantizer.scale.detach(), call.node)
        self._replace(call, torch.ops.fxcompress.dynamic_matmul.default, (x, weight, scale))

    def _buffer(self, name: str, value: Tensor, before: fx.Node) -> fx.Node:
        """A node that reads ``value``, which is stored once however many layers share it."""
        key = (value.dtype, value.shape, sha256(value.cpu().numpy().tobytes()).digest())
        if key in self._written:
            return read_tensor(self.module, self._written[key], before)
        node = add_buffer(self.module, name, value, before)
        self._written[key] = str(node.target)
        return node

    def _replace(self, call: Call, target: Any, args: tuple[Any, ...]) -> None:
        node = call.node
        bias = operand_node(self.module, node, "bias")
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, args)
            new.meta = self._meta(node)
            if bias is not None:
                new = self.graph.call_function(torch.ops.aten.add.Tensor, (new, bias))
                new.meta = self._meta(node)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    @staticmethod
    def _meta(node: fx.Node) -> dict[str, Any]:
        kept: dict[str, Any] = {k: v for k, v in node.meta.items() if k != "aten"}
        if not isinstance(kept.get("tensor"), TensorInfo):
            raise TypeError(f"{node}: a linear layer yields one tensor")
        return kept
