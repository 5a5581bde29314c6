"""Placement: which tensors are rounded, so that the graph that trains is the graph that runs in integers.

Rules, from what onnxruntime fuses into one integer kernel:

- A tensor is rounded once, behind the operator that makes it; all who ask read the same rounded tensor.
- Nothing is rounded between an operator and the ReLU or ReLU6 behind it: they are one kernel.
- Operators that only choose or move values (max pooling, reshape, transpose, slice, ...) keep the grid of
  their input: what reads their result has its rounding moved in front of them.
- Kernels with integer results need them rounded (``needs_output``), whether a config entry says so or not;
  ``exactly=True`` leaves these out.
- ``add``, ``mul``, ``cat``, pooling and the like join a region of integers where everything in front of them
  and behind them is quantized. A residual stream that a LayerNorm reads stays float: rounding it costs
  accuracy and gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch import fx

from fxcompress import ops
from fxcompress.config.settings import QuantSettings
from fxcompress.graph.calls import Call, Reference, call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.shapes import element_info
from fxcompress.passes.insert_fake_quant import PASSING, Rounded, quantizer_name, rounded_by

WEIGHTS = {"addmm": "mat2"}
"""Operators whose weight is another argument than ``weight``."""
COMPUTING = frozenset(
    {
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("linear", "addmm", "baddbmm", "matmul", "bmm"),
    }
)
"""Operators worth quantizing for their own sake."""
TABLES = frozenset({"embedding"})
"""Operators that look up rows of their weight."""
FOLLOWING = frozenset(
    {
        *("add", "mul", "cat", "sigmoid", "hardsigmoid", "leaky_relu", "adaptive_avg_pool2d", "avg_pool2d"),
        *("mean", "add_", "mul_"),
    }
)
"""Operators with an integer kernel that is worth it only between others."""
BOUNDS = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "softmax": (0.0, 1.0)}
"""Operators whose results lie in a range that is known."""
CLIPPING = frozenset({"relu", "relu_", "relu6", "hardtanh", "clamp", "clamp_min"})
"""Operators that a quantizer behind them does by the ends of its range."""


@dataclass(frozen=True)
class Spot:
    """A tensor to round: for ``layer`` (the first that asks), as its weight, input or output."""

    rounded: Rounded
    layer: str
    quant_type: str
    settings: QuantSettings
    axis: int | None = None
    """Of a weight the dimension of its output channels."""
    bounds: tuple[float, float] | None = None
    """The range that the operator has, whatever its operands are."""


@dataclass
class _Request:
    """Who reads a rounded tensor: some calls, or everyone."""

    layer: str
    quant_type: str
    settings: QuantSettings
    readers: set[fx.Node] = field(default_factory=set)
    everyone: bool = False


def weight_argument(call: Call) -> str | None:
    """The argument that holds the layer's weight."""
    name = WEIGHTS.get(call.op, "weight")
    return name if call.op in COMPUTING | TABLES and call.get(name) is not None else None


def weight_axis(call: Call) -> int:
    """The dimension of the weight that counts output channels; of a table its rows."""
    return 1 if call.op.startswith("conv_transpose") or call.op == "addmm" else 0


def layer_calls(module: CompiledModule) -> dict[str, list[Call]]:
    """Target name → its calls: of a module, also those that read its weight without calling it."""
    found: dict[str, list[Call]] = {}
    for node in module.graph.nodes:
        call = call_of(node)
        if call is None:
            continue
        name = call.module or node.name
        argument = weight_argument(call)
        weight = call.get(argument) if argument is not None and call.module is None else None
        if isinstance(weight, Reference):
            name = str(weight).rpartition(".")[0] or name
        found.setdefault(name, []).append(call)
    return found


def gated(module: CompiledModule, layers: Collection[str]) -> set[fx.Node]:
    """The calls of those of ``layers`` behind which a gate is worth its integers: convolutions, and linear
    layers of one vector per example. (Of tokens, outliers would cost accuracy.)
    """
    found = layer_calls(module)
    calls = [call for name in layers for call in found.get(name, ()) if call.op in COMPUTING]
    return {c.node for c in calls if c.op.startswith("conv") or len(c.node.meta["tensor"].shape) == 2}


class Placement:
    """Finds the tensors to round for ``settings`` (target name → how)."""

    def __init__(
        self,
        module: CompiledModule,
        settings: Mapping[str, QuantSettings],
        *,
        barred: Collection[str] = (),
        exactly: bool = False,
        moves: bool = True,
    ) -> None:
        """``barred``: targets that must not join a region; ``exactly``: nothing joins; ``moves``: whether
        what is read behind operators that pass values on is rounded in front of them.
        """
        self._module = module
        self._calls = layer_calls(module)
        self._exactly = exactly
        self._moves = moves
        self._requests: dict[fx.Node, list[_Request]] = {}
        self._settings = {name: s for name, s in settings.items() if name in self._calls}
        self.joined: dict[str, QuantSettings] = {}
        """Operators between quantized ones, and how they are quantized."""
        self.idle: list[str] = []
        """Targets of which ``spots`` found no tensor to round."""
        if not exactly:
            self.joined = self._followers(frozenset(barred))
            self._settings |= self.joined

    @property
    def nodes(self) -> dict[str, list[fx.Node]]:
        """Target name → its calls."""
        return {name: [call.node for call in self._calls[name]] for name in self._settings}

    # -- regions -------------------------------------------------------------------------------------------
    def _followers(self, barred: frozenset[str]) -> dict[str, QuantSettings]:
        """The operators with an integer kernel all of whose neighbours are integers."""
        region = {
            call.node: settings
            for name, settings in self._settings.items()
            for call in self._calls[name]
            if {"weight", "input"} <= set(settings.quant_types) or call.op not in COMPUTING
        }
        candidates = {
            calls[0].node: name
            for name, calls in self._calls.items()
            if name not in self._settings and name not in barred and len(calls) == 1 and _may_join(calls[0])
        }
        read = {self._maker(source) for node in region for source in node.all_input_nodes}
        changed = True
        while changed:
            changed = False
            inside = region.keys() | candidates.keys()
            for node in list(candidates):
                readers = list(self._readers(clipped(node)))
                makers = {self._maker(source) for source in node.all_input_nodes}
                if not (readers and inside.issuperset(readers) and makers <= inside | read):
                    del candidates[node]
                    changed = True
        joined: dict[str, QuantSettings] = {}
        for node in reversed(list(self._module.graph.nodes)):  # those behind a follower have theirs already
            if node in candidates:
                region[node] = joined[candidates[node]] = region[next(self._readers(clipped(node)))]
        return joined

    def _maker(self, node: fx.Node) -> fx.Node:
        """Who made the values of ``node``, through what passes them on or clips them."""
        call = call_of(node)
        while call is not None and call.op in PASSING | CLIPPING and call.node.all_input_nodes:
            node = call.node.all_input_nodes[0]
            call = call_of(node)
        return node

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Who reads the values of ``node``, through what passes them on."""
        for user in node.users:
            call = call_of(user)
            if call is not None and call.op in PASSING:
                yield from self._readers(user)
            else:
                yield user

    # -- requests ------------------------------------------------------------------------------------------
    def spots(self, taken: Collection[str] = ()) -> dict[str, Spot]:
        """The tensors to round, by the name that their quantizer is to get (none that is ``taken``)."""
        found: dict[str, Spot] = {}
        for name, settings in self._settings.items():
            asked = False
            for index, call in enumerate(self._calls[name]):
                if "weight" in settings.quant_types:
                    spot = self._weight(name, call, settings)
                    suffix = f"_{index}" if index else ""
                    if spot is not None:
                        found[_free({*found, *taken}, f"{_plain(name)}_weight{suffix}")] = spot
                        asked = True
                if "input" in settings.quant_types:
                    asked |= self._ask_inputs(name, call, settings)
                needed = not self._exactly and needs_output(call) and "input" in settings.quant_types
                if "output" in settings.quant_types or needed:
                    self._ask(clipped(call.node), _Request(name, "output", settings, everyone=True))
                    asked = True
            if not asked:
                self.idle.append(name)
        if self._moves:
            self._move_in_front()
        for source, requests in self._requests.items():
            maker = call_of(source)
            bounds = None if maker is None else BOUNDS.get(maker.op)
            for request in _merged(requests):
                readers = None if request.everyone else tuple(n for n in source.users if n in request.readers)
                name = _free({*found, *taken}, f"{_plain(request.layer)}_{request.quant_type}")
                place, settings = Rounded(source, None, readers), request.settings
                found[name] = Spot(place, request.layer, request.quant_type, settings, bounds=bounds)
        return found

    def _weight(self, name: str, call: Call, settings: QuantSettings) -> Spot | None:
        argument = weight_argument(call)
        if argument is None:
            return None
        return Spot(Rounded(call.node, argument), name, "weight", settings, weight_axis(call))

    def _ask_inputs(self, name: str, call: Call, settings: QuantSettings) -> bool:
        """Ask for the operands that are tensors of floats; whether there are any."""
        asked = False
        parameters = {weight_argument(call), "bias"} | ({"self"} if call.op == "addmm" else set())
        for argument, ref in call.refs():
            if argument in parameters or not isinstance(ref, fx.Node):
                continue
            facts = element_info(ref)
            if facts is not None and facts.dtype.is_floating_point and facts.shape:
                self._ask(ref, _Request(name, "input", settings, {call.node}))
                asked = True
        return asked

    def _ask(self, source: fx.Node, request: _Request) -> None:
        self._requests.setdefault(source, []).append(request)

    def _move_in_front(self) -> None:
        """Round in front of operators that pass values on, where all who read their results ask for it."""
        for node in reversed(list(self._module.graph.nodes)):
            call = call_of(node)
            requests = self._requests.get(node)
            if call is None or not requests or call.op not in PASSING:
                continue
            asked = set().union(*(r.readers for r in requests))
            if not (any(r.everyone for r in requests) or asked >= set(node.users)):
                continue
            if len(_merged(requests)) > 1:
                continue
            source = _passed_on(call)
            if source is not None:
                first = requests[0]
                self._ask(source, _Request(first.layer, first.quant_type, first.settings, {node}))
                del self._requests[node]


def operands_of(call: Call) -> dict[str, fx.Node]:
    """The operands of a call that are nodes: ``weight``, and ``input`` (further ones ``input_1``, ...)."""
    argument = weight_argument(call)
    operands: dict[str, fx.Node] = {}
    inputs = 0
    for name, ref in call.refs():
        if name == argument and isinstance(ref, fx.Node):
            operands["weight"] = ref
        elif name != "bias" and isinstance(ref, fx.Node):
            operands["input" if inputs == 0 else f"input_{inputs}"] = ref
            inputs += 1
    return operands


def tensors_of(node: fx.Node) -> dict[str, str]:
    """Of a call whose tensors are rounded: weight, input (further ones input_1, ...) and output → the name of
    the quantizer.
    """
    call = call_of(node)
    if call is None:
        return {}
    found = {tensor: by for tensor, ref in operands_of(call).items() if (by := rounded_by(ref))}
    for user in clipped(node).users:
        if user.target is ops.fake_quantize:
            found["output"] = quantizer_name(user)
    return found


def clipped(node: fx.Node) -> fx.Node:
    """The ReLU or ReLU6 that is the only reader of ``node``, or the node itself."""
    users = list(node.users)
    call = call_of(users[0]) if len(users) == 1 else None
    if call is None or call.op not in CLIPPING:
        return node
    low = call.get("min_val", call.get("min", 0))
    return users[0] if low == 0 else node


def _may_join(call: Call) -> bool:
    """Whether an operator has an integer kernel for the way it is called."""
    if call.op not in FOLLOWING:
        return False
    operands = [ref for _, ref in call.refs()]
    if not all(isinstance(ref, fx.Node) for ref in operands):
        return False
    if call.op in ("add", "add_", "mul", "mul_"):
        return len(operands) == 2 and call.get("alpha", 1) == 1
    if call.op == "adaptive_avg_pool2d":
        return set(call.args["output_size"]) == {1}
    if call.op == "mean":
        facts = element_info(call.node.all_input_nodes[0])
        dims = call.get("dim") or ()
        return facts is not None and len(facts.shape) == 4 and {d % 4 for d in dims} == {2, 3}
    return True


def needs_output(call: Call) -> bool:
    """Whether the integer kernel of an operator has an integer result."""
    return call.op.startswith("conv") or call.op in FOLLOWING


def _passed_on(call: Call) -> fx.Node | None:
    """The tensor whose values an operator passes on; none where it takes one of several apart."""
    source = next((ref for _, ref in call.refs() if isinstance(ref, fx.Node)), None)
    facts = None if source is None else element_info(source)
    return source if facts is not None and facts.dtype.is_floating_point else None


def _merged(requests: list[_Request]) -> list[_Request]:
    """One request for each grid; one for everyone stands for all."""
    whole = next((r for r in requests if r.everyone), None)
    if whole is not None:
        return [whole]
    merged: dict[tuple[object, ...], _Request] = {}
    for request in requests:
        s, t = request.settings, request.quant_type
        key = (s.quant_bits[t], s.quant_dtype[t], s.quant_scheme[t], s.quant_scale[t], s.quantizer)
        first = merged.setdefault(key, _Request(request.layer, t, s))
        first.readers |= request.readers
    return list(merged.values())


def _plain(name: str) -> str:
    return name.replace(".", "_") or "model"


def _free(taken: Collection[str], name: str) -> str:
    number = 1
    candidate = name
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
