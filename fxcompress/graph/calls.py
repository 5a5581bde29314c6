"""One view of every operator call, whether it stands in the graph as a leaf module or as a function.

A node raised to ``call_module`` remembers the ATen call it was captured from (``node.meta["aten"]``), so
rules and passes see ``conv2d(input=…, weight="layer1.0.conv1.weight", …)`` in both forms.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxcompress import ops

Ref = fx.Node | str
"""A tensor: a computed node, or the qualified name of a parameter or buffer."""


@dataclass(frozen=True)
class Attribute:
    """A parameter or buffer of the called module, by its attribute name."""

    name: str


@dataclass(frozen=True)
class Activation:
    """The tensor the leaf module was called with."""


@dataclass(frozen=True)
class Aten:
    """The ATen call behind a raised node, by argument name of the operator's schema."""

    target: Any
    args: dict[str, Any]


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a node's value. Dimensions that depend on the batch hold the size they have at
    batch ``PROBE`` and are flagged in ``dynamic``."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: tuple[bool, ...]


PROBE = 251
"""The batch size at which symbolic dimensions are evaluated: a prime that no layer width is likely to
hold.
"""


@dataclass(frozen=True)
class Call:
    """An operator call: ``op`` is the ATen base name (``conv2d``); tensors among ``args`` are ``Ref``s."""

    node: fx.Node
    op: str
    target: Any
    args: dict[str, Any]
    module: str | None

    def get(self, name: str, default: Any = None) -> Any:
        """The argument ``name``, or ``default``."""
        return self.args.get(name, default)

    def refs(self) -> Iterator[tuple[str, Ref]]:
        """Every tensor operand with the argument it belongs to."""
        for name, value in self.args.items():
            if name in ("owner", "input_owner"):
                continue
            for item in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(item, (fx.Node, Reference)):
                    yield name, unwrap(item)


def operand(call: Call) -> Any:
    """The tensor an operator of one tensor works on; ATen calls it ``input`` or ``self``."""
    return call.args["input"] if "input" in call.args else call.args["self"]


class Reference(str):
    """The qualified name of a tensor (a ``str`` that is not confused with string arguments)."""

    __slots__ = ()


def unwrap(value: Any) -> Any:
    """A get_attr node as the ``Reference`` it reads, anything else unchanged."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return Reference(value.target)
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(v) for v in value)
    return value


@functools.cache
def _defaults(target: Any) -> tuple[tuple[str, Any], ...]:
    if isinstance(target, torch._ops.OpOverload):
        return tuple(
            (a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments
        )
    try:
        return tuple((p.name, None) for p in inspect.signature(target).parameters.values())
    except ValueError:
        return tuple((f"arg{i}", None) for i in range(8))


def bind(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, defaults filled in, for ATen overloads and plain functions."""
    defaults = _defaults(target)
    bound = dict(defaults)
    bound.update(zip((name for name, _ in defaults), args, strict=False))
    bound.update(kwargs)
    return bound


def positions(target: Any) -> dict[str, int]:
    """Argument name → position, the inverse of ``bind``'s naming."""
    return {name: i for i, (name, _) in enumerate(_defaults(target))}


def base_name(target: Any) -> str:
    """``aten.add.Tensor`` → ``add``; ``operator.getitem`` → ``getitem``; ``ops.layer_norm`` → itself,
    dotted.
    """
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return name if namespace == "aten" else f"{namespace}::{name}"
    name = getattr(target, "__name__", str(target))
    return f"fxcompress.{name}" if getattr(target, "__module__", "") == ops.__name__ else name


def call_of(node: fx.Node) -> Call | None:
    """The operator call a node makes; ``None`` for placeholders, attributes and outputs."""
    if node.op == "call_module":
        aten: Aten = node.meta["aten"]
        return _from_template(node, aten, str(node.target), node.args[0], {})
    if node.op != "call_function":
        return None
    if node.target is ops.call:
        owner = node.args[0]
        if not isinstance(owner, fx.Node):
            raise TypeError(f"{node}: the first argument of ops.call must be a module attribute")
        return _from_template(node, node.meta["aten"], str(owner.target), node.args[1], dict(node.kwargs))
    args = {k: unwrap(v) for k, v in bind(node.target, node.args, dict(node.kwargs)).items()}
    return Call(node, base_name(node.target), node.target, args, None)


def channel_dim(call: Call, rank: int) -> int:
    """The output-channel dimension of a convolution (``conv2d``: third from the end) or of a linear call."""
    return rank - 1 if call.op in ("linear", "addmm") else rank - int(call.op[-2]) - 1


def _from_template(node: fx.Node, aten: Aten, module: str, x: Any, given: dict[str, Any]) -> Call:
    def fill(value: Any) -> Any:
        if isinstance(value, Activation):
            return unwrap(x)
        if isinstance(value, Attribute):
            return unwrap(given[value.name]) if value.name in given else Reference(f"{module}.{value.name}")
        return value

    return Call(node, base_name(aten.target), aten.target, {k: fill(v) for k, v in aten.args.items()}, module)
