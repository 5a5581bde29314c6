"""``Shrink``: what rules use to adjust a call once slices of its operands are gone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxcompress import ops
from fxcompress.graph.calls import Aten, Attribute, Call, Ref, Reference, channel_dim, positions
from fxcompress.graph.module import CompiledModule, free_name, get_tensor
from fxcompress.rules.axes import Axis, AxisMap, Bools, Link, Product
from fxcompress.rules.flow import Flow
from fxcompress.rules.values import Values


class Shrink:
    """Edits one graph module in place, given which slices of which axes are kept."""

    def __init__(self, module: CompiledModule, flow: Flow, values: Values, kept: dict[int, Bools]) -> None:
        self.module = module
        self.graph = module.graph
        self.flow = flow
        self.values = values
        self._kept = kept
        self._counts: dict[int, int] = {}
        self._indices: dict[int, Tensor] = {}
        self._edited: dict[Reference, Tensor] = {}
        self.identities: list[fx.Node] = []
        """Calls that return their first operand as it is, now: they go once every rule has run."""
        self.folded = False
        self.again = False
        """Whether what was removed may let more become constant (less padding, say): worth another round."""

    @property
    def map(self) -> AxisMap:
        """The axes of every tensor."""
        return self.flow.map

    # -- asking --------------------------------------------------------------------------------------------
    def axes(self, ref: Ref) -> tuple[Axis, ...]:
        """The axes of a tensor, as before shrinking."""
        return self.flow.axes(ref)

    def kept(self, axis: Axis) -> Bools:
        """Which slices of an axis are kept."""
        root = axis.find()
        found = self._kept.get(id(root))
        return np.ones(root.size, dtype=np.bool_) if found is None else found

    def count(self, axis: Axis) -> int:
        """How many slices of an axis are kept."""
        root = axis.find()
        if id(root) not in self._counts:
            self._counts[id(root)] = int(self.kept(root).sum())
        return self._counts[id(root)]

    def keeps_all(self, axis: Axis) -> bool:
        """Whether nothing of an axis is removed."""
        return self.count(axis) == axis.size

    def index(self, axis: Axis) -> Tensor:
        """Which slices of an axis are kept, as int64 indices."""
        root = axis.find()
        if id(root) not in self._indices:
            self._indices[id(root)] = torch.from_numpy(np.flatnonzero(self.kept(root)))
        return self._indices[id(root)]

    def block(self, value: Tensor, axes: Sequence[Axis]) -> Tensor:
        """The kept block of a tensor with these axes."""
        for dim, axis in enumerate(axes):
            if not self.keeps_all(axis):
                value = value.index_select(dim, self.index(axis).to(value.device))
        return value

    def loses_a_factor(self, relation: Link | Product) -> bool:
        """Whether a product loses slices of a factor: the others may be constant in all that are left."""
        return isinstance(relation, Product) and not all(map(self.keeps_all, relation.factors))

    def changed(self, *refs: Ref) -> bool:
        """Whether any of these tensors loses slices."""
        return any(not self.keeps_all(axis) for ref in refs for axis in self.axes(ref))

    def recall(self, node: fx.Node) -> Axis:
        """The axis a rule remembered for ``node``."""
        return self.flow.recall(node)

    # -- literals and attributes ---------------------------------------------------------------------------
    def set_args(self, call: Call, **changes: Any) -> None:
        """Replace arguments of the call; a raised node becomes a function call,
        as its module cannot say them.
        """
        node = call.node
        if all(call.args.get(k) == v for k, v in changes.items()):
            return
        if node.op == "call_module" or node.target is ops.call:
            self._lower(call, changes)
            return
        slots = positions(node.target)
        args, kwargs = list(node.args), dict(node.kwargs)
        for name, value in changes.items():
            if name in kwargs or slots[name] >= len(args):
                kwargs[name] = value
            else:
                args[slots[name]] = value
        node.args, node.kwargs = tuple(args), kwargs

    def _lower(self, call: Call, changes: dict[str, Any]) -> None:
        def node_of(value: Any) -> Any:
            if isinstance(value, Reference):
                return self.attribute(call.node, value)
            return value

        bound = {k: node_of(v) for k, v in {**call.args, **changes}.items()}
        call.node.op, call.node.target = "call_function", call.target
        call.node.args, call.node.kwargs = (), bound
        call.node.meta.pop("aten", None)

    def attribute(self, before: fx.Node, name: str) -> fx.Node:
        """A ``get_attr`` node in front of ``before``."""
        with self.graph.inserting_before(before):
            return self.graph.create_node("get_attr", str(name), (), {})

    def attributes(self, call: Call, changes: dict[str, Any], **attributes: Any) -> None:
        """Set attributes of the called module, or the arguments ``changes`` of a function call."""
        if call.module is None:
            self.set_args(call, **changes)
            self._describe(call, attributes)
            return
        module = self.module.get_submodule(call.module)
        if any(getattr(module, k) != v for k, v in attributes.items()):
            for name, value in attributes.items():
                setattr(module, name, value)
            aten: Aten = call.node.meta["aten"]
            call.node.meta["aten"] = Aten(aten.target, {**aten.args, **changes})

    def _describe(self, call: Call, attributes: dict[str, Any]) -> None:
        """Let a module whose call was inlined say its new sizes when printed."""
        module = self.module.get_submodule(call.node.meta.get("module", ""))
        weight = self.values.baked(call.get("weight"))
        own = {id(p) for p in module._parameters.values() if p is not None}
        if weight is not None and id(get_tensor(self.module, weight)) in own:
            for name, value in attributes.items():
                if hasattr(module, name):
                    setattr(module, name, value)

    def unrestrict(self, call: Call) -> None:
        """Turn restricted statistics of which every kept channel counts back into the plain ones."""
        mask = call.get("mask")
        if mask is None:
            return
        value = self.values.known(mask)
        if value is None:
            raise ValueError(f"{call.node}: the mask of restricted statistics must be a buffer")
        if not bool((self.block(value, self.axes(mask)) != 0).all()):
            return
        literals = plain_statistics(call.node)
        if call.node.op != "call_module":
            return
        owner = self.module.get_submodule(str(call.node.target))
        if "normalized_shape" in literals:
            owner.normalized_shape = tuple(literals["normalized_shape"])  # type: ignore[assignment]
        elif "num_groups" in literals:
            owner.num_groups = literals["num_groups"]
            owner.num_channels = self.count(self.axes(call.node)[1])  # type: ignore[assignment]

    def size(self, before: fx.Node, given: Any, axis: Axis) -> Any:
        """A literal or computed size, scaled from the old size of ``axis`` to the kept one."""
        old, new = axis.size, self.count(axis)
        if old == new or given == -1:
            return given
        if isinstance(given, int):
            return new
        divisor = int(np.gcd(old, new))
        with self.graph.inserting_before(before):
            scaled = self.graph.call_function(operator.mul, (given, new // divisor))
            return self.graph.call_function(operator.floordiv, (scaled, old // divisor))

    def constant(self, before: fx.Node, value: Tensor) -> fx.Node:
        """A new buffer holding ``value``, and a node that reads it."""
        name = free_name(self.module, "_index")
        self.module.register_buffer(name, value, persistent=True)
        return self.attribute(before, name)

    def gather(self, call: Call, dim: int, index: Sequence[int] | np.ndarray[Any, Any]) -> None:
        """Replace the call by ``index_select(self, dim, index)``."""
        chosen = self.constant(call.node, torch.as_tensor(np.asarray(index), dtype=torch.int64))
        self.rewrite(call, torch.ops.aten.index_select.default, call.args["self"], dim, chosen)

    def rewrite(self, call: Call, target: Any, *args: Any) -> None:
        """Let the node call ``target`` with ``args`` instead."""
        node = call.node
        node.op, node.target, node.kwargs = "call_function", target, {}
        node.args = tuple(self.attribute(node, a) if isinstance(a, Reference) else a for a in args)
        node.meta.pop("aten", None)

    # -- parameters ----------------------------------------------------------------------------------------
    def value(self, ref: Any) -> Tensor | None:
        """The current full-size value of a parameter, edits included."""
        name = self.values.baked(ref)
        if name is not None and name in self._edited:
            return self._edited[name]
        return self.values.known(ref)

    def replace(self, ref: Any, value: Tensor, *, exact: bool = False) -> None:
        """Give a parameter a new full-size value (it is sliced later); ``exact``: no rounding was needed."""
        self.folded |= not exact
        name = self.values.baked(ref)
        if name is None:
            raise ValueError(f"{ref} is no plain parameter")
        self._edited[name] = value

    def edited(self, name: Reference) -> Tensor | None:
        """The new full-size value of a parameter, if a rule gave one."""
        return self._edited.get(name)

    def add_to_bias(
        self, call: Call, added: Tensor | None, *, bias: str = "bias", weight: str = "weight"
    ) -> None:
        """Add a float64 vector over all outputs (removed ones too) to the bias, made if there is none."""
        outputs = self.axes(call.node)[channel_dim(call, len(self.axes(call.node)))]
        if added is None or not bool((added[torch.from_numpy(self.kept(outputs))] != 0).any()):
            return
        old = call.args[bias]
        if old is not None:
            value = self.value(old)
            if value is None:
                raise ValueError(f"{call.node}: the bias is not a parameter")
            self.replace(old, (value.to(torch.float64) + added).to(value.dtype))
            return
        source = self.values.baked(call.args[weight])
        if source is None:
            raise ValueError(f"{call.node}: the weight is not a parameter")
        like = get_tensor(self.module, source)
        path = source.rpartition(".")[0]
        owner = self.module.get_submodule(path)
        # A layer that adds its bias by itself has one already; other modules may hold several weights.
        attribute = "bias"
        if owner._parameters.get("bias") is not None or not source.endswith("weight"):
            attribute = f"{source.rpartition('.')[2]}_bias"
        name = Reference(f"{path}.{attribute}".lstrip("."))
        new = nn.Parameter(added.to(like.dtype).to(like.device), requires_grad=like.requires_grad)
        owner.register_parameter(attribute, new)
        self.map.of[name] = (outputs,)
        self._edited[name] = new.detach()
        self.folded = True
        if call.module is None:
            self.set_args(call, bias=self.attribute(call.node, name))
        else:
            aten: Aten = call.node.meta["aten"]
            call.node.meta["aten"] = Aten(aten.target, {**aten.args, "bias": Attribute("bias")})


def plain_statistics(node: fx.Node) -> dict[str, Any]:
    """Let a node of restricted statistics (``passes.insert_masks``) call the operator that it was.

    Returns:
        The sizes that the layer it called is an object of: ``normalized_shape`` or ``num_groups``.
    """
    module, aten = node.meta.pop("unrestricted")
    now: dict[str, Any] = dict(zip(positions(node.target), node.args, strict=True))
    now["self"] = now["input"]
    if module is None:
        bound = {name: now.get(name, given) for name, given in aten.args.items()}
        node.target, node.args, node.kwargs = aten.target, (), bound
        return {}
    literals: dict[str, Any] = {name: now[name] for name in ("normalized_shape", "num_groups") if name in now}
    node.op, node.target, node.args, node.kwargs = "call_module", module, (now["input"],), {}
    node.meta["aten"] = Aten(aten.target, {**aten.args, **literals})
    return literals
