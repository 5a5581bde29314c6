"""Functions a graph file may name: ATen operators, ``fxcompress.ops``, and some of ``operator``.

A file can only name what is listed here, so reading one never imports or calls anything else.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from fxcompress import ops
from fxcompress.errors import ExportError, did_you_mean

_OPERATORS = (
    "abs add and_ eq floordiv ge getitem gt index invert le lt mod mul ne neg not_ or_ pos pow sub truediv"
)
_SYMBOLIC = "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum _sym_sqrt"
_MATH = "ceil floor sqrt trunc"


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Every function beside the ATen operators that a file may name, by that name."""
    table: dict[str, Callable[..., Any]] = {f"operator.{n}": getattr(operator, n) for n in _OPERATORS.split()}
    table |= {f"math.{n}": getattr(math, n) for n in _MATH.split()}
    table |= {f"torch.{n}": getattr(torch, n) for n in _SYMBOLIC.split() if hasattr(torch, n)}
    own = inspect.getmembers(ops, lambda f: inspect.isfunction(f) and f.__module__ == ops.__name__)
    table |= {f"fxcompress.ops.{name}": function for name, function in own if not name.startswith("_")}
    table |= {"builtins.max": max, "builtins.min": min, "builtins.round": round}
    return table


@functools.cache
def _names() -> dict[int, str]:
    return {id(function): name for name, function in functions().items()}


def function_name(target: Any, where: str) -> str:
    """The name under which ``target`` is stored: ``aten.conv2d.default``, ``operator.getitem``, …

    Raises:
        ExportError: names ``where`` and what to do, for a function that a file may not name.
    """
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        full = f"{namespace}.{name}.{target._overloadname}"
        if _aten(full) is target:
            return full
    elif id(target) in _names():
        return _names()[id(target)]
    raise ExportError(
        f"{where} calls {target}, which a model file cannot name\n"
        "Files hold ATen operators, symbolic size arithmetic and fxcompress.ops; write this step of the "
        "model with torch functions, or store the state_dict and rebuild the model in code."
    )


def function_of(name: Any, where: str) -> Any:
    """The function stored under ``name``.

    Raises:
        ExportError: for a name that is not on the list.
    """
    found = None
    if isinstance(name, str):
        found = _aten(name) if name.startswith("aten.") else functions().get(name)
    if found is None:
        near = did_you_mean(name, functions()) if isinstance(name, str) else ""
        raise ExportError(
            f"{where}: the function {name!r} is not one that a model file may call{near}\n"
            "Expected an ATen operator such as 'aten.conv2d.default', or one of operator.*, fxcompress.ops.* "
            "The file is damaged, tampered with or from a newer fxcompress; get it again."
        )
    return found


@functools.cache
def _aten(name: str) -> torch._ops.OpOverload | None:
    """The dispatcher's operator ``aten.<name>.<overload>``, unless it reads or writes files."""
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    if namespace != "aten" or not (base.isidentifier() and overload.isidentifier()):
        return None
    registered = f"aten::{base}" if overload == "default" else f"aten::{base}.{overload}"
    if registered not in _dispatched():
        return None
    found = getattr(getattr(torch.ops.aten, base, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        return None
    return None if any(argument.name == "filename" for argument in found._schema.arguments) else found


@functools.cache
def _dispatched() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())
