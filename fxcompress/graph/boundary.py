"""What goes into a model and comes out of it: whether a graph can hold that, and what to do where it cannot.

A graph takes and returns tensors, numbers and strings, in containers that pytree knows.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, first_line
from fxcompress.graph.inputs import Inputs, copied

_PLAIN = (Tensor, bool, int, float, complex, str, type(None), torch.dtype, torch.device)


def output_of(model: nn.Module, inputs: Inputs) -> Any:
    """What ``model`` returns for ``inputs``; pytree knows the dataclasses in it afterwards, as export needs.

    Raises:
        CaptureError: if the model does not run on the inputs at all.
    """
    try:
        with torch.no_grad():
            args, kwargs = copied(inputs)
            output = model(*args, **kwargs)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} does not run on the example inputs{user_line(error)}: "
            f"{type(error).__name__}: {first_line(error)}\n{_other_inputs(inputs)}"
        ) from error
    for leaf in pytree.tree_leaves(output):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
    return output


def _other_inputs(inputs: Inputs) -> str:
    """What to pass instead of inputs that the model does not run on."""
    args, kwargs = inputs
    if any(isinstance(x, Tensor) for x in pytree.tree_leaves(inputs)):
        return f"Pass example_inputs that model({'**' if kwargs else '*'}example_inputs) accepts."
    named = [type(x).__name__ for x in args] + [f"{name}: {type(x).__name__}" for name, x in kwargs.items()]
    return (
        f"example_inputs hold no tensor ({', '.join(named)}). Pass tensors; a tokenizer makes them with "
        "return_tensors='pt'."
    )


def uncapturable(model: nn.Module, inputs: Inputs, output: Any, failure: Exception) -> CaptureError:
    """Say at which line of the user's code the capture failed, or what no graph can hold; and what to do."""
    name = type(model).__name__
    registered = "leave it out of example_inputs, or register its class with torch.export.register_dataclass"
    sides = (
        ("takes", inputs[1] or inputs[0], registered),
        ("returns", output, _without_cache(model)),
    )
    for verb, values, remedy in sides:
        if foreign := _foreign(values):
            return CaptureError(
                f"{name} cannot be captured: it {verb} {foreign}, and a graph holds tensors, numbers and "
                f"strings in lists, tuples and dicts; {remedy}"
            )
    return CaptureError(
        f"{name} cannot be captured{user_line(failure)}: {type(failure).__name__}: {first_line(failure)}\n"
        "A graph has one path for every input: branch on shapes or on module attributes rather than on "
        "tensor values (torch.where, torch.cond), and keep tensors out of .item() and numpy."
    )


def _foreign(values: Any) -> str:
    """The first of ``values`` that no graph can hold, ``'past_key_values' (DynamicCache)``, or nothing."""
    named = values.items() if isinstance(values, Mapping) else enumerate(pytree.tree_leaves(values))
    for name, value in named:
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, _PLAIN):
                return f"{name!r} ({type(leaf).__name__})" if isinstance(name, str) else type(leaf).__name__
    return ""


def _without_cache(model: nn.Module) -> str:
    """How to have the model return less; models that generate keep a cache unless told otherwise."""
    if getattr(getattr(model, "config", None), "use_cache", False):
        return "set model.config.use_cache = False"
    return "let it return its tensors alone"


def user_line(error: BaseException) -> str:
    """`` at file:line (code)`` for the innermost frame outside torch and fxcompress."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename.replace("\\", "/") for part in ("/torch/", "/fxcompress/", "<"))
    ]
    if not frames:
        return ""
    frame = frames[-1]
    return f" at {frame.filename}:{frame.lineno} (`{frame.line}`)"
