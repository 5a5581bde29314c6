"""What a config list can select: the modules of a model, and the operator nodes of its graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cache

import torch
from torch import fx, nn

from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule, Scope
from fxcompress.graph.shapes import element_info

_CONTAINERS = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.ParameterList,
    nn.ParameterDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)

FUNCTIONAL_TYPES = frozenset(
    {
        *("add", "sub", "mul", "div", "cat", "matmul", "bmm", "baddbmm", "einsum"),
        *("scaled_dot_product_attention", "softmax", "mean", "sum", "relu", "gelu", "sigmoid", "silu"),
        *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "interpolate", "pad", "layer_norm"),
    }
)
"""Functional operator types that are accepted (and may be absent) in any model."""


@dataclass(frozen=True)
class Target:
    """One node a config entry can select.

    Attributes:
        name: qualified module name, or node name for a functional operator.
        op_types: names the node's type goes by; the first is its own, then its torch.nn base classes.
        functional: whether it is an operator node of the graph rather than a module.
        aliases: other names of the same module (a module that the model holds twice).
    """

    name: str
    op_types: tuple[str, ...]
    functional: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def op_type(self) -> str:
        """The node's own type: ``Conv2dSame`` for timm's subclass of ``Conv2d``."""
        return self.op_types[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


def targets_of_model(model: nn.Module) -> list[Target]:
    """Return the selectable modules in the model's own order.

    These are the modules of torch.nn classes (and their subclasses) that are not mere containers, and the
    other modules that have no children. A module held under several names is one target.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _selectable(module):
            names.setdefault(module, []).append(name)
    return [
        Target(first, _type_names(_kind(module)), aliases=tuple(aliases))
        for module, (first, *aliases) in names.items()
    ]


def targets_of_graph(module: CompiledModule) -> list[Target]:
    """The modules of a captured model, then its functional operators, by node name.

    A functional operator is a call on activations that stands for no module: ``add``, ``matmul``.
    """
    constant: set[fx.Node] = set()
    found: list[Target] = []
    for node in module.graph.nodes:
        call = call_of(node)
        if node.op == "get_attr" or (call is not None and set(node.all_input_nodes) <= constant):
            constant.add(node)
        elif call is not None and call.module is None and element_info(node) is not None:
            found.append(Target(node.name, (call.op,), functional=True))
    return targets_of_model(module) + found


@cache
def nn_types() -> frozenset[str]:
    """The class names of torch.nn."""
    return frozenset(
        name for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)
    )


def is_operator(name: str) -> bool:
    """Whether the name is that of a function which might become a node: ``matmul``, ``conv2d``, ``add``."""
    return not name.startswith("_") and any(
        callable(getattr(place, name, None)) for place in (nn.functional, torch.Tensor, operator)
    )


def _is_nn(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.modules.")


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class, also of a captured model's container."""
    return (module.kind if isinstance(module, Scope) else None) or type(module)


def _selectable(module: nn.Module) -> bool:
    kind = _kind(module)
    if issubclass(kind, _CONTAINERS):
        return False
    if any(_is_nn(cls) for cls in kind.__mro__ if cls is not nn.Module):
        return True
    return next(module.children(), None) is None


def _type_names(cls: type) -> tuple[str, ...]:
    bases = (base.__name__ for base in cls.__mro__[1:] if _is_nn(base) and base.__name__ in nn_types())
    return (cls.__name__, *(name for name in bases if name != "Module"))
