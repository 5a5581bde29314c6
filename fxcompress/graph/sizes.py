"""Sizes other than the batch: whether a model computes with them, and a warning where they are others.

A graph holds the sizes of the example inputs wherever the model's code read one:

    x / x.shape[1]   captured at [n, 4]   →   x / 4, for [n, 8] too

``SizeReads`` watches a trace for such reads. A model without them (a convnet with global pooling, say) does
at other sizes what its graph does. Of one with them nobody knows without its code, so the captured module
warns, once for each new combination of sizes. What torch's own functions and modules read does not count:
their operators are in the graph as such, or refuse other sizes. Nothing is looked at while
``torch.compile`` or ``torch.export`` traces: a comparison would fix the sizes that they leave open.
"""

from __future__ import annotations

import dis
import functools
import os
import sys
import warnings
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen
from torch.jit import is_tracing  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.errors import SizeWarning
from fxcompress.graph.shapes import info

_TORCH = os.path.dirname(torch.__file__) + os.sep
_HANDLERS = (os.path.join(_TORCH, "overrides.py"), os.path.join(_TORCH, "_tensor.py"))
_SHAPE: Any = Tensor.shape
_READERS = frozenset({_SHAPE.__get__, Tensor.size, Tensor.numel, Tensor.nelement, torch.numel})
_PIECES = frozenset({Tensor.__len__, Tensor.unbind, torch.unbind, Tensor.split, torch.split})
"""How many there are is a plain number to Python."""

Sizes = tuple[int | None, ...]
"""Of one input; ``None`` where any size will do."""


class SizeReads(TorchFunctionMode):
    """Whether the model's own code reads a size that is fixed in the trace (those that follow the batch are
    symbols there)."""

    found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.found and (func in _READERS or func in _PIECES):
            frame = _asking(sys._getframe(1))
            if frame is not None and not frame.f_code.co_filename.startswith(_TORCH):
                self.found = _is_fixed(func, args, result, frame)
        return result


def _asking(frame: FrameType | None) -> FrameType | None:
    """The code that calls the function, behind the handlers of ``__torch_function__``."""
    while frame is not None and (
        frame.f_code.co_name == "__torch_function__" or frame.f_code.co_filename in _HANDLERS
    ):
        frame = frame.f_back
    return frame


def _is_fixed(func: Any, args: Any, result: Any, frame: FrameType) -> bool:
    if func in _PIECES:
        sections = func in (Tensor.split, torch.split) and len(args) > 1 and not isinstance(args[1], int)
        return not sections  # sections say themselves how many there are
    if not isinstance(result, tuple):
        return isinstance(result, int)
    index = _indices(frame.f_code).get(frame.f_lasti)
    sizes = result if index is None or not -len(result) <= index < len(result) else (result[index],)
    return any(isinstance(size, int) for size in sizes)


@functools.lru_cache(maxsize=256)
def _indices(code: CodeType) -> Mapping[int, int]:
    """Where the code takes one element, ``….shape[0]``: offset of the instruction in front → the index."""
    found, steps = {}, list(dis.get_instructions(code))
    for taken, index, subscript in zip(steps, steps[1:], steps[2:], strict=False):
        is_subscript = subscript.opname == "BINARY_SUBSCR" or subscript.argrepr == "[]"
        if is_subscript and index.opname.startswith("LOAD_") and isinstance(index.argval, int):
            found[taken.offset] = index.argval
    return found


class SizeCheck:
    """Compares the inputs of calls with the sizes that a graph was captured at; keeps the sizes it met."""

    def __init__(self, graph: fx.Graph) -> None:
        self._arguments = argument_names(graph)
        self._fixed = [(node.name, _sizes(node)) for node in graph.find_nodes(op="placeholder")]
        self._met: set[Any] = set()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Warn (``SizeWarning``) of sizes that are neither those of the example nor of an earlier call."""
        shapes = [x.shape if isinstance(x, Tensor) else None for x in (*args, *kwargs.values())]
        if None in shapes:  # a container, perhaps
            leaves = pytree.tree_leaves((args, kwargs))
            shapes = [x.shape if isinstance(x, Tensor) else None for x in leaves]
        key = (*kwargs, *shapes)
        if key not in self._met:
            self._met.add(key)
            self._look(args, kwargs)

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = dict(zip(self._arguments, args, strict=False)) | kwargs
        leaves = pytree.tree_leaves([bound.get(name) for name in self._arguments])
        if len(leaves) != len(self._fixed) or is_tracing():
            return  # forward refuses it, or the sizes are those of a trace
        told = tuple(
            f"input {name!r} is {_told(x.shape, fixed)}, that of the example was {_told(fixed, fixed)}"
            for (name, fixed), x in zip(self._fixed, leaves, strict=True)
            if isinstance(x, Tensor) and fixed is not None and _differ(fixed, x.shape)
        )
        if told and told not in self._met:
            self._met.add(told)
            warnings.warn(
                f"fxcompress: {'; '.join(told)}: the model's code computes with sizes, and its graph has "
                "those of the example in their place, so results may be wrong; compile the model with "
                "example_inputs of these sizes",
                SizeWarning,
                stacklevel=9,
            )


def argument_names(graph: fx.Graph) -> list[str]:
    """Of ``forward``, as the graph was captured; none for a graph without that."""
    codegen = graph._codegen
    return list(codegen.pytree_info.orig_args) if isinstance(codegen, _PyTreeCodeGen) else []


def _sizes(node: fx.Node) -> Sizes | None:
    """What the trace fixed; ``None`` where nothing is known."""
    known = info(node)
    if known is None:
        return None
    return tuple(None if is_open else s for s, is_open in zip(known.shape, known.dynamic, strict=True))


def _differ(fixed: Sizes, given: tuple[int, ...]) -> bool:
    pairs = zip(fixed, given, strict=False)
    return len(fixed) != len(given) or any(f is not None and f != g for f, g in pairs)


def _told(sizes: Sizes | torch.Size, fixed: Sizes) -> str:
    """``n×3×8×8``."""
    is_open = dict.fromkeys((i for i, size in enumerate(fixed) if size is None), "n")
    return "×".join(is_open.get(i, str(size)) for i, size in enumerate(sizes)) or "none"
