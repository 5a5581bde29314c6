"""Convert: fake-quantize nodes become integers.

    y = conv(fq(x), weight=fq(w))      →      x8 = quantize(x, s_x, z_x)                 uint8
                                              w8, b32: buffers                           int8, int32
                                              y = conv(dequantize(x8), weight=dequantize(w8, s_w),
                                                       bias=dequantize(b32, s_x · s_w))

Law: the module computes what it computed in eval mode, but for biases, which are rounded to multiples of
``s_x · s_w`` as integer kernels add them (Jacob et al., CVPR 2018, eq. 11). Behind operators that pass values
on (max pooling, reshape, ...) the same quantize and dequantize stand once more: they change nothing there,
and a runtime takes the operator between them as one on integers. Linear layers become products of matrices
(``flatten_linear``); those with weights in groups, or inputs rounded dynamically, get operators of their own
(``lower_linear``). Returns a fork whose parameters are
buffers; it no longer trains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed as _decomposed

from fxcompress import ops
from fxcompress.errors import PassError
from fxcompress.graph.calls import Call, Reference, TensorInfo, call_of, operand
from fxcompress.graph.constants import Constants
from fxcompress.graph.module import CompiledModule, erase_dead
from fxcompress.graph.operands import add_buffer, operand_node, read_tensor, set_operand
from fxcompress.graph.shapes import element_info
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import BIAS, Grid, bias_scale
from fxcompress.passes.flatten_linear import flatten_linear
from fxcompress.passes.insert_fake_quant import CONTAINER, PASSING, quantizer_name, rounded_by
from fxcompress.passes.lower_linear import lower_linear, settled

_q = torch.ops.quantized_decomposed  # defined by the import of _decomposed


@dataclass(frozen=True)
class Numbers:
    """How a tensor is rounded: float32 scales, int32 zero points, ``[]`` or ``[slices]``."""

    grid: Grid
    scale: Tensor
    zero_point: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The integer type that holds the grid; its own where a runtime has kernels for it."""
        if self.grid.bits > 8:
            return torch.int16 if self.grid.signed else torch.uint16
        return torch.int8 if self.grid.signed else torch.uint8


def convert(module: CompiledModule) -> CompiledModule:
    """A fork of ``module`` in integers; what is rounded by quantizers without a grid stays float.

    Raises:
        PassError: if a quantizer has seen no values yet.
    """
    twin = module.fork().eval()
    twin.notes += lower_linear(twin)
    erase_dead(twin.graph)
    flatten_linear(twin, [node for node in twin.graph.nodes if _has_integer_kernel(node)])
    editor = _Converter(twin)
    for node in list(twin.graph.nodes):
        editor.visit(node)
    erase_dead(twin.graph)
    _drop_unread(twin)
    twin.graph.lint()
    twin.recompile()
    return twin


def rounds_activations(converted: CompiledModule) -> bool:
    """Whether a value that depends on the input is rounded anywhere, so that one may fall on another step."""
    rounding = (_q.quantize_per_tensor.default, torch.ops.fxcompress.dynamic_matmul.default)
    nbits = torch.ops.fxcompress.matmul_nbits.default
    return any(
        node.target in rounding or (node.target is nbits and node.args[-1] == 4)
        for node in converted.graph.nodes
    )


def _is_size(node: fx.Node) -> bool:
    """Whether a node yields a number, the size of a reshape, say."""
    return isinstance(node.meta.get("tensor"), int)


def _has_integer_kernel(node: fx.Node) -> bool:
    """Whether a node is a linear layer of rounded operands."""
    call = call_of(node)
    if call is None or call.op != "linear":
        return False
    return all(rounded_by(call.get(name)) is not None for name in ("input", "weight"))


class _Converter:
    def __init__(self, module: CompiledModule) -> None:
        self.module, self.graph = module, module.graph
        self._rounded: dict[fx.Node, Numbers] = {}
        """What dequantize nodes, and operators that pass their values on, are rounded to."""
        self._constants = Constants(module)
        self._tables: list[str] = []
        """Buffers whose rows are looked up."""

    def visit(self, node: fx.Node) -> None:
        """Convert a fake-quantize node, or pass on what an operator behind one is rounded to."""
        self._constants.see(node)
        if node.target is ops.fake_quantize:
            self._convert(node)
            return
        if node.target is ops.round_bias:  # once more at the end, into integers
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            return
        call = call_of(node)
        if call is None:
            return
        sources = [ref for _, ref in call.refs() if isinstance(ref, fx.Node) and not _is_size(ref)]
        if call.op in PASSING and len(sources) == 1 and sources[0] in self._rounded:
            numbers = self._rounded[sources[0]]
            single = element_info(node) is not None
            self._rounded[self._again(node, numbers) if single else node] = numbers
        elif call.op == "linear" or call.op.startswith("conv"):
            self._round_bias(call)
        elif call.op == "hardsigmoid":
            self._as_sum(call)
        elif call.op == "embedding":
            self._look_up(call)

    def _convert(self, node: fx.Node) -> None:
        source, owner = node.args
        quantizer = self.module.get_submodule(str(owner.target))  # type: ignore[union-attr]
        if not isinstance(quantizer, FakeQuantize):
            return
        if not quantizer.quantizing:
            node.replace_all_uses_with(source)  # type: ignore[arg-type]
            return
        name, value = quantizer_name(node), self._constants.of(source)
        settled(name, quantizer, value)
        numbers = Numbers(quantizer.grid, *quantizer.deployed())
        if value is not None:
            integers = quantizer.integers(value).to(numbers.dtype)
            new = self._stored(node, name, integers, numbers)
        else:
            new = self._pair(node, source, numbers)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self._rounded[new] = numbers

    def _again(self, node: fx.Node, numbers: Numbers) -> fx.Node:
        """Quantize and dequantize behind ``node``."""
        if all(user.op == "output" for user in node.users):
            return node
        readers = list(node.users)
        with self.graph.inserting_after(node):
            marker = self.graph.call_function(torch.ops.aten.alias.default, (node,))
        marker.meta["tensor"] = node.meta.get("tensor")
        new = self._pair(marker, node, numbers)
        for reader in readers:
            reader.replace_input_with(node, new)
        self.graph.erase_node(marker)
        return new

    def _pair(self, before: fx.Node, source: Any, numbers: Numbers) -> fx.Node:
        if numbers.grid.axis is not None:
            raise PassError(f"{source}: activations with a scale for every channel have no integer form")
        grid = numbers.grid
        facts = (float(numbers.scale), int(numbers.zero_point), grid.qmin, grid.qmax, numbers.dtype)
        with self.graph.inserting_before(before):
            integers = self.graph.call_function(_q.quantize_per_tensor.default, (source, *facts))
            new = self.graph.call_function(_q.dequantize_per_tensor.default, (integers, *facts))
        tensor = before.meta.get("tensor")
        if isinstance(tensor, TensorInfo):
            integers.meta["tensor"] = replace(tensor, dtype=numbers.dtype)
        new.meta["tensor"] = tensor
        return new

    def _stored(self, before: fx.Node, name: str, integers: Tensor, numbers: Numbers) -> fx.Node:
        """A buffer of integers in front of ``before``, dequantized."""
        grid = numbers.grid
        read = add_buffer(self.module, f"{name}_integers", integers, before)
        ends = grid.qmin, grid.qmax, integers.dtype
        if grid.axis is None:
            facts: tuple[Any, ...] = (float(numbers.scale), int(numbers.zero_point), *ends)
            target = _q.dequantize_per_tensor.default
        else:
            scale = add_buffer(self.module, f"{name}_scale", numbers.scale, before)
            zeros = numbers.zero_point.to(torch.int64)
            zero_point = add_buffer(self.module, f"{name}_zero_point", zeros, before)
            facts, target = (scale, zero_point, grid.axis, *ends), _q.dequantize_per_channel.default
        with self.graph.inserting_before(before):
            new = self.graph.call_function(target, (read, *facts))
        new.meta["tensor"] = replace(read.meta["tensor"], dtype=torch.float32)
        return new

    def _round_bias(self, call: Call) -> None:
        """A bias of an integer layer as int32 at ``s_x · s_w``."""
        x, weight, bias = (call.get(name) for name in ("input", "weight", "bias"))
        value = self._constants.of(bias)
        if x not in self._rounded or weight not in self._rounded or value is None:
            return
        made, read = self._rounded[x], self._rounded[weight]
        scale = bias_scale(made.scale, read.scale, len(value))
        integers = torch.round(value.double() / scale.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)
        zero_point = torch.zeros(len(scale), dtype=torch.int32)
        name = f"{call.module or call.node.name}_bias".replace(".", "_")
        new = self._stored(call.node, name, integers, Numbers(BIAS, scale, zero_point))
        set_operand(self.module, call.node, "bias", new)

    def _look_up(self, call: Call) -> None:
        """Rows of a rounded table: integers first, so that it need not be dequantized as a whole."""
        table, node = call.get("weight"), call.node
        if table not in self._rounded:
            return
        numbers, name = self._rounded[table], str(table.args[0].target)
        stored = self._held(name, self.module.get_buffer(name), node)
        rows = operand_node(self.module, node, "indices")
        info = node.meta["tensor"]

        def looked_up(values: fx.Node) -> fx.Node:
            found = self._computed(node, torch.ops.aten.embedding.default, values, rows)
            shape = (*info.shape[:-1], values.meta["tensor"].shape[-1])
            found.meta["tensor"] = replace(info, shape=shape, dtype=values.meta["tensor"].dtype)
            return found

        integers = looked_up(stored)
        if numbers.grid.axis is None:
            new = self._computed(node, _q.dequantize_per_tensor.default, integers, *table.args[1:])
        else:
            new = self._computed(node, torch.ops.aten._to_copy.default, integers, dtype=info.dtype)
            for which, operator, values in (
                ("zero_points", torch.ops.aten.sub.Tensor, numbers.zero_point),
                ("scales", torch.ops.aten.mul.Tensor, numbers.scale),
            ):
                if which == "scales" or values.any():
                    column = values[:, None].to(info.dtype, copy=True)
                    steps = looked_up(self._held(f"{name}_{which}", column, node))
                    new = self._computed(node, operator, new, steps)
        node.replace_all_uses_with(new)

    def _held(self, name: str, table: Tensor, before: fx.Node) -> fx.Node:
        """A node that reads ``table``: from the buffer of an equal one, which was looked up before."""
        for found in self._tables:
            held = self.module.get_buffer(found)
            if held.dtype == table.dtype and torch.equal(held, table):
                return read_tensor(self.module, found, before)
        if self.module._buffers.get(name) is table:
            node = read_tensor(self.module, name, before)
        else:
            node = add_buffer(self.module, name, table, before)
        self._tables.append(str(node.target))
        return node

    def _computed(self, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in front of ``before`` whose result is like that."""
        with self.graph.inserting_before(before):
            new = self.graph.call_function(target, args, kwargs)
        new.meta["tensor"] = before.meta["tensor"]
        return new

    def _as_sum(self, call: Call) -> None:
        """``hardsigmoid(x) = clamp(x / 6 + ½, 0, 1)`` as a sum of integers, ``x`` dequantized at a sixth of
        its scale: the quantizer behind clips it, if its grid ends at 0 and 1.
        """
        x, node = operand(call), call.node
        readers = list(node.users)
        behind = readers[0] if len(readers) == 1 and readers[0].target is ops.fake_quantize else None
        if behind is None or x not in self._rounded:
            return
        last = self.module.get_submodule(str(behind.all_input_nodes[1].target))
        if not isinstance(last, FakeQuantize) or not last.is_calibrated:
            return
        if [float(end) for end in last.grid.range(last.scale, last.zero_point)] != [0.0, 1.0]:
            return
        numbers = self._rounded[x]
        integers, _, *rest = x.args
        half = Numbers(Grid(8, False, False), torch.tensor(0.5), torch.tensor(0, dtype=torch.int32))
        sixth = self._computed(
            node, _q.dequantize_per_tensor.default, integers, float(numbers.scale / 6), *rest
        )
        one = torch.ones((1,) * len(node.meta["tensor"].shape), dtype=torch.uint8)
        addend = self._stored(node, f"{node.name}_half", one, half)
        node.replace_all_uses_with(self._computed(node, torch.ops.aten.add.Tensor, sixth, addend))


def _drop_unread(module: CompiledModule) -> None:
    """Delete the parameters, buffers and quantizers that nothing reads any more."""
    read: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            read.add(str(node.target))
        call = call_of(node)
        if call is not None:
            read.update(str(ref) for _, ref in call.refs() if isinstance(ref, Reference))
    quantizers = module.get_submodule(CONTAINER)._modules
    for name in list(quantizers):
        if f"{CONTAINER}.{name}" not in read:
            del quantizers[name]
    for path, owner in list(module.named_modules()):
        if path.startswith(f"{CONTAINER}."):  # a quantizer without a grid, which stays as it is
            continue
        for table in (owner._parameters, owner._buffers):
            for attribute in list(table):
                if f"{path}.{attribute}".lstrip(".") in read:
                    continue
                if path:
                    table[attribute] = None  # a layer's own code asks for it
                else:
                    del table[attribute]
    if not quantizers:
        del module._modules[CONTAINER]
