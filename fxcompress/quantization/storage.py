"""What a quantized model takes: integers packed at their number of bits, scales beside them, the rest as is.

    bytes(tensor) = numel · bits / 8 + 4 · scales (+ 1 · zero points, on affine grids)

A runtime may store more: onnxruntime's convolutions keep any weight in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx, nn

from fxcompress import ops
from fxcompress.errors import FxcompressError
from fxcompress.graph.calls import Reference, call_of
from fxcompress.graph.cost import count_bytes
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.graph.shapes import element_info
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.passes.insert_fake_quant import CONTAINER, quantizer_name, quantizers
from fxcompress.quantization.noise import rounded_layers
from fxcompress.quantization.placement import tensors_of

SCALE_BYTES = 4


@dataclass(frozen=True)
class RoundedTensor:
    """A tensor with a quantizer of its own.

    Attributes:
        members: what it is: ``(layer, quant_type)`` of all that make or read it.
        numel: its elements; of an activation for one example.
        bytes: of packed integers, scales and zero points.
    """

    members: tuple[tuple[str, str], ...]
    numel: int
    bytes: float


def rounded_tensors(module: CompiledModule) -> dict[str, RoundedTensor]:
    """The tensors that are rounded, by the name of their quantizer.

    Raises:
        FxcompressError: if one is rounded to numbers that are no grid's.
    """
    members: dict[str, list[tuple[str, str]]] = {}
    for layer, calls in rounded_layers(module).items():
        for call in calls:
            for tensor, name in tensors_of(call.node).items():
                members.setdefault(name, []).append((layer, tensor.partition("_")[0]))
    roundings = module.graph.find_nodes(op="call_function", target=ops.fake_quantize)
    numel = {quantizer_name(node): _numel(node) for node in roundings}
    found: dict[str, RoundedTensor] = {}
    for name, asked in members.items():
        size = _packed(name, quantizers(module)[name], numel[name])
        found[name] = RoundedTensor(tuple(dict.fromkeys(asked)), numel[name], size)
    return found


def count_stored_bytes(module: CompiledModule) -> float:
    """The bytes of parameters and buffers, rounded weights packed.

    A weight that something reads in floats as well counts twice.

    Raises:
        FxcompressError: as ``rounded_tensors``.
    """
    packed = sum(t.bytes for t in rounded_tensors(module).values() if t.members[0][1] == "weight")
    quantizing = count_bytes(module.get_submodule(CONTAINER))
    held = {id(w): w.numel() * w.element_size() for w in _weights(module)}
    return count_bytes(module) - quantizing - sum(held.values()) + packed


def _packed(name: str, quantizer: nn.Module, numel: int) -> float:
    if not isinstance(quantizer, FakeQuantize):
        raise FxcompressError(
            f"fake-quantize node {name!r}: expected one that rounds to a grid of some bits, got "
            f"{type(quantizer).__name__}; use quantizer 'ptq', 'qat', 'lsq', 'weight_only' or 'gptq'"
        )
    scales = quantizer.scale.numel()
    return numel * quantizer.grid.bits / 8 + scales * (SCALE_BYTES + (not quantizer.grid.symmetric))


def _numel(rounding: fx.Node) -> int:
    """The elements of what a fake-quantize node rounds, for one example."""
    facts = element_info(rounding)
    if facts is None:
        raise FxcompressError(f"{rounding.name}: its shape depends on values, so its bytes are unknown")
    return prod(size for size, dynamic in zip(facts.shape, facts.dynamic, strict=True) if not dynamic)


def _weights(module: CompiledModule) -> Iterator[Tensor]:
    """The parameters that are read rounded only."""
    inside: dict[fx.Node, tuple[int, ...]] = {}
    for node in module.graph.find_nodes(op="call_function", target=ops.fake_quantize):
        facts = element_info(node)
        for source in _behind(node):
            inside[source] = () if facts is None else tuple(sorted(facts.shape))
    floats = {
        id(get_tensor(module, ref))
        for node in module.graph.nodes
        if node not in inside and (call := call_of(node)) is not None
        for _, ref in call.refs()
        if isinstance(ref, Reference)
    }
    for node, shape in inside.items():
        held = get_tensor(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(held, nn.Parameter) and tuple(sorted(held.shape)) == shape and id(held) not in floats:
            yield held


def _behind(rounding: fx.Node) -> list[fx.Node]:
    """What a rounded weight is computed from, the fake-quantize node included; nothing of an activation."""
    found, pending = {rounding: None}, list(rounding.all_input_nodes[:-1])
    while pending:
        node = pending.pop()
        if node.op == "placeholder":
            return []
        if node not in found:
            found[node] = None
            pending += node.all_input_nodes
    return list(found)
