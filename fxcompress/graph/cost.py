"""What a module costs: parameters, bytes, multiply-accumulates, seconds.

Law: a count depends on shapes alone, so it is the same for every dtype, weight value and example batch.
Units: parameters in elements, sizes in bytes, MACs per example (one MAC is two FLOPs), latencies in seconds.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fxcompress import ops
from fxcompress.graph.module import eval_mode

Call = tuple[tuple[Any, ...], dict[str, Any]]

aten = torch.ops.aten


def as_call(inputs: Any) -> Call:
    """Return ``(args, kwargs)`` for a tensor, a tuple of arguments, a dict of keywords, or such a pair."""
    if isinstance(inputs, dict):
        return (), dict(inputs)
    if not isinstance(inputs, tuple | list):
        return (inputs,), {}
    if len(inputs) == 2 and isinstance(inputs[0], tuple | list) and isinstance(inputs[1], dict):
        return tuple(inputs[0]), dict(inputs[1])
    return tuple(inputs), {}


def count_parameters(module: nn.Module) -> int:
    """Return the number of elements in the module's parameters, a shared parameter counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of parameters and buffers, a shared tensor counted once.

    A mask (the buffer ``<parameter>_mask`` beside its parameter) simulates the small model and is no part
    of what would be stored, so it is not counted.
    """
    tensors: dict[int, Tensor] = {}
    for owner in module.modules():
        for name, tensor in itertools.chain(owner._parameters.items(), owner._buffers.items()):
            is_mask = name.endswith("_mask") and name.removesuffix("_mask") in owner._parameters
            if tensor is not None and not is_mask:
                tensors[id(tensor)] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one forward pass.

    ``by_layer`` maps the qualified name of a layer (or the name of a graph node that belongs to no layer,
    such as an attention product) to its MACs; the values sum to ``total``. ``batch`` is the number of
    examples that were run: 1, or the size of the given batch where the module refuses a batch of one.
    """

    total: int
    by_layer: Mapping[str, int]
    batch: int


def count_macs(module: nn.Module, inputs: Any) -> MacCount:
    """Count the matrix-product and convolution MACs of ``module(*inputs)`` in eval mode on one example.

    ``inputs``: a tensor, a tuple of arguments, a dict of keywords or an ``(args, kwargs)`` pair; the batch is
    axis 0 of the first tensor. Runs on fake tensors (no arithmetic, no memory); a module that reads tensor
    values is run for real. Raises what the module itself raises on ``inputs``.
    """
    args, kwargs = as_call(inputs)
    batch = _batch_size((args, kwargs))
    attempts = (
        [(True, 1), (False, 1), (True, batch), (False, batch)]
        if batch > 1
        else [(True, batch), (False, batch)]
    )
    with evaluating(module), torch.no_grad(), _without_gradients(module):
        for fake, size in attempts[:-1]:
            try:
                return _count(module, _first_examples((args, kwargs), batch, size), fake=fake, batch=size)
            except Exception:  # whatever it is, the last attempt (real tensors, as given) raises it again
                continue
        return _count(module, (args, kwargs), fake=False, batch=batch)


def _batch_size(call: Call) -> int:
    sizes = (leaf.shape[0] for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim > 0)
    return int(next(sizes, 1))


def _first_examples(call: Call, batch: int, size: int) -> Call:
    """Narrow axis 0 of every tensor whose axis 0 is the batch to its first ``size`` entries."""

    def narrow(tensor: Tensor) -> Tensor:
        return tensor[:size] if tensor.ndim > 0 and tensor.shape[0] == batch else tensor

    narrowed: Call = tree_map_only(Tensor, narrow, call)
    return narrowed


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration: no running statistic may move because something was counted.

    The fused attention kernel of ``nn.MultiheadAttention`` is off too: no counter sees into it.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with eval_mode(module):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


def _sdpa_cpu_flops(query: Any, key: Any, value: Any, *args: Any, out_val: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _rnn_layer_flops(
    x: Any, w_input: Any, w_hidden: Any, *args: Any, out_val: Any = None, **kwargs: Any
) -> int:
    """One direction of one layer; x: (steps, batch, features), weights: (gates * hidden, features)."""
    return int(2 * x[0] * x[1] * (w_input[0] * w_input[1] + w_hidden[0] * w_hidden[1]))


def _flop_counter() -> FlopCounterMode:
    """Torch's counter plus the kernels that only CPUs use and its table leaves out."""
    cpu_kernels: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_cpu_flops,
        aten.mkldnn_rnn_layer: _rnn_layer_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=cpu_kernels)


def _count(module: nn.Module, call: Call, *, fake: bool, batch: int) -> MacCount:
    if fake:
        with detect_fake_mode(list(module.parameters())) or FakeTensorMode(
            allow_non_fake_inputs=True
        ) as mode:
            args, kwargs = tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True), call)
            flops = _flops_by_layer(module, args, kwargs)
    else:
        flops = _flops_by_layer(module, *call)
    by_layer = {name: count // 2 for name, count in flops.items() if count}
    return MacCount(sum(by_layer.values()), by_layer, batch)


def _flops_by_layer(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, int]:
    if isinstance(module, fx.GraphModule):
        interpreter = _CountingInterpreter(module, garbage_collect_values=True)
        bound = signature(module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        interpreter.run(*bound.args, *bound.kwargs.values())
        return interpreter.flops
    with _flop_counter() as counter:
        module(*args, **kwargs)
    return _own_flops(module, counter)


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """The counter hooks the gradient of what a submodule is given; a parameter has no graph to hook into."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class _CountingInterpreter(fx.Interpreter):
    """Runs a graph node by node and books the FLOPs of each on the layer that owns its weight."""

    def __init__(self, module: fx.GraphModule, **options: Any) -> None:
        super().__init__(module, **options)
        self.flops: dict[str, int] = defaultdict(int)

    def run_node(self, n: fx.Node) -> Any:
        with _flop_counter() as counter:
            result = super().run_node(n)
        if flops := counter.get_total_flops():
            self.flops[layer_of(n)] += flops
        return result


def layer_of(node: fx.Node) -> str:
    """Return the qualified name of the layer whose weight ``node`` applies, or else the node's own name.

    A masked layer is ``ops.call(owner, x, weight=weight * mask)``; a functional layer reads its weight from a
    ``get_attr`` node, directly or through a mask product.
    """
    if node.op == "call_module":
        return str(node.target)
    if node.target is ops.call:
        return str(node.all_input_nodes[0].target)
    pending = node.all_input_nodes[1:]
    while pending:
        source = pending.pop(0)
        if source.op == "get_attr":
            return str(source.target).rpartition(".")[0] or str(source.target)
        if source.op != "call_function" or source.target is ops.call:
            continue
        if any(i.op == "get_attr" for i in source.all_input_nodes):
            pending.extend(source.all_input_nodes)
    return node.name


def _own_flops(module: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Turn the counter's inclusive counts per module into each module's own, without its children's."""
    root = type(module).__name__
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items() if name != "Global"}
    own = dict(counts)
    for name, count in counts.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in own:
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= count
    return {name.removeprefix(root).removeprefix("."): count for name, count in own.items()}


@dataclass(frozen=True)
class Latency:
    """Seconds of every timed call, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile: half of the calls lie between."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def ratio_to(self, reference: Latency) -> float:
        """Return the median over rounds of this candidate's seconds by the reference's in the same round.

        Both from one ``compare_latency``: a disturbance slows the two calls of its round, not their ratio.
        """
        pairs = zip(self.seconds, reference.seconds, strict=True)
        return statistics.median(mine / other for mine, other in pairs)

    def to_dict(self) -> dict[str, float]:
        """Return median and quartiles in seconds and the number of calls."""
        lower, upper = self.quartiles
        return {"median": self.median, "lower": lower, "upper": upper, "runs": len(self.seconds)}


def measure_latency(function: Callable[[], Any], *, rounds: int = 20, warmup: int = 3) -> Latency:
    """Time ``function()`` for ``rounds`` calls after ``warmup`` untimed ones."""
    return compare_latency({"": function}, rounds=rounds, warmup=warmup)[""]


def compare_latency(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Time several functions against each other, one call of each per round.

    Interleaved, and in reversed order every second round, so that a machine that slows down or is shared
    slows every candidate alike and the *ratios* stay meaningful. Synchronizes CUDA when it is in use.
    ``clock`` gives seconds; ``time.process_time`` does not count what other processes take.
    """
    if rounds < 1:
        raise ValueError(f"compare_latency: rounds must be at least 1, got {rounds}")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for index in range(-warmup, rounds):
        for name, function in order if index % 2 == 0 else reversed(order):
            elapsed = _timed(function, clock)
            if index >= 0:
                seconds[name].append(elapsed)
    return {name: Latency(tuple(times)) for name, times in seconds.items()}


def _timed(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    synchronize()
    start = clock()
    function()
    synchronize()
    return clock() - start


def _nothing() -> None:
    return None
