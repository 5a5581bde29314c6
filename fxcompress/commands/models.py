"""The model a command is about: made by one's own code, or read from a file; and its example inputs."""

from __future__ import annotations

import argparse
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxcompress.commands.options import InputSpec
from fxcompress.errors import FxcompressError, did_you_mean, first_line
from fxcompress.export.archive import load
from fxcompress.graph.capture import capture
from fxcompress.graph.inputs import as_inputs
from fxcompress.graph.module import CompiledModule
from fxcompress.places import blamed, resolve

_WRAPPINGS = ("state_dict", "model")
"""Keys under which checkpoints hold their state dict."""


def model_of(options: argparse.Namespace) -> nn.Module:
    """The model that ``options.add_model`` describes, in eval mode, with weights.

    Raises:
        FxcompressError: naming the option, what was expected and what there was.
    """
    place: str = options.model
    if place.endswith(".pt2"):
        if options.model_args is not None:
            raise FxcompressError("--model-args: a .pt2 file needs none; leave it out")
        model: nn.Module = load(place)
    else:
        model = _made(place, options.model_args)
    if options.weights is not None:
        _load_weights(model, options.weights)
    if isinstance(model, CompiledModule) and options.inputs:
        model.example_inputs = as_inputs(inputs_of(options.inputs))
    return model.eval()


def captured(options: argparse.Namespace) -> CompiledModule:
    """The same as a graph."""
    return capture(model_of(options), inputs_of(options.inputs))


def _made(place: str, arguments: dict[str, Any] | None) -> nn.Module:
    found = resolve(place)
    if isinstance(found, nn.Module):
        if arguments is not None:
            raise FxcompressError(f"--model-args: {place} is a model already; leave it out")
        return found
    if not callable(found):
        raise FxcompressError(
            f"{place}: expected a torch.nn.Module, or a class or function that makes one, got "
            f"{type(found).__name__}"
        )
    _check_arguments(place, found, arguments or {})
    with blamed(place):
        model = found(**(arguments or {}))
    if not isinstance(model, nn.Module):
        raise FxcompressError(f"{place} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _check_arguments(place: str, made_by: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Whether a class or function is given all that it needs."""
    try:
        parameters = inspect.signature(made_by).parameters.values()
    except ValueError:  # it has none to read
        return
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    lacking = [p.name for p in parameters if p.default is p.empty and p.kind in named and p.name not in given]
    if lacking:
        example = ", ".join(f'"{name}": …' for name in [*given, *lacking])
        raise FxcompressError(
            f"{place} needs {', '.join(lacking)}; give arguments as JSON: --model-args '{{{example}}}', or "
            "name a function that needs none"
        )


def _load_weights(model: nn.Module, file: Path) -> None:
    given = _read_weights(file)
    own = model.state_dict()
    problems = [
        f"{name}: expected shape {tuple(own[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in given.items()
        if name in own and own[name].shape != tensor.shape
    ]
    problems += [f"the file lacks {name!r}{did_you_mean(name, given)}" for name in own if name not in given]
    problems += [f"the model has no {name!r}{did_you_mean(name, own)}" for name in given if name not in own]
    if problems:
        more = [f"and {len(problems) - 6} more"] if len(problems) > 7 else problems[6:7]
        raise FxcompressError("\n".join([f"{file} does not fit the model:", *problems[:6], *more]))
    model.load_state_dict(given)


def _read_weights(file: Path) -> dict[str, Tensor]:
    import safetensors.torch

    if not file.is_file():
        raise FxcompressError(f"--weights {file}: there is no such file")
    try:
        content: Any = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        why = f"cannot be read ({first_line(error)})"
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            why = "holds Python objects, which are not loaded, for they could run any code"
        raise FxcompressError(
            f"--weights {file}: {why}; expected a state dict, plain tensors by name, written by safetensors "
            "or by torch.save(model.state_dict(), …)"
        ) from error
    inner = next((content[k] for k in _WRAPPINGS if isinstance(content, Mapping) and k in content), None)
    content = inner if isinstance(inner, Mapping) else content
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise FxcompressError(f"--weights {file}: expected a state dict, tensors by name")
    return {str(name): tensor for name, tensor in content.items()}


def inputs_of(specs: Sequence[InputSpec]) -> Any:
    """What ``fxcompress.compile`` takes as example inputs; ``None`` if nothing was given.

    Random numbers are standard normal, integers and booleans 0 and 1; the same in every run.
    """
    if not specs:
        return None
    generator = torch.Generator().manual_seed(0)
    pairs: list[tuple[str | None, Tensor]] = []
    for spec in specs:
        pairs += [(spec.name, _random(spec, generator))] if spec.file is None else _read(spec.name, spec.file)
    named = [name for name, _ in pairs if name is not None]
    if named and len(named) < len(pairs):
        raise FxcompressError("--input: expected names for all inputs or for none; add NAME= to the others")
    if len(set(named)) < len(named):
        raise FxcompressError(f"--input: expected each name once, got {', '.join(named)}")
    return {name: x for name, x in pairs if name} if named else tuple(x for _, x in pairs)


def _random(spec: InputSpec, generator: torch.Generator) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, spec.shape, generator=generator).to(dtype)


def _read(name: str | None, file: Path) -> list[tuple[str | None, Tensor]]:
    """The array of an .npy file, or the arrays of an .npz file with their names; those that ``numpy.savez``
    makes up (``arr_0``) are none.
    """
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return [(name, torch.from_numpy(content))]
        arrays = {key: torch.from_numpy(content[key]) for key in content.files}
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise FxcompressError(f"--input {file}: cannot be read as arrays ({first_line(error)})") from error
    made_up = all(key == f"arr_{i}" for i, key in enumerate(arrays))
    return [(None if made_up else key, x) for key, x in arrays.items()]
