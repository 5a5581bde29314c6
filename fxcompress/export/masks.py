"""Mask files: ``{layer name: {"weight": mask, "bias": mask}}``, 1 where kept and 0 where pruned.

Beside parameters a layer may have masks for what goes into it and comes out of it (``input``, ``output``).

Written as safetensors under the keys ``layer::weight``; files that other tools wrote with ``torch.save`` are
read too, with the restricted unpickler (tensors and dicts only).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fxcompress.errors import ExportError, SpeedupError, did_you_mean
from fxcompress.export.files import replacing

Masks = dict[str, dict[str, Tensor]]
_SEPARATOR = "::"
ACTIVATIONS = ("input", "output")
"""Names that stand for a layer's activations where it has no parameter of that name."""


def save_masks(masks: Mapping[str, Mapping[str, Tensor]], path: str | os.PathLike[str]) -> None:
    """Write ``masks`` to ``path``; an existing file is replaced at the end.

    Raises:
        ExportError: if an entry is not a tensor, or the folder does not exist.
    """
    flat: dict[str, Tensor] = {}
    for layer, entries in masks.items():
        for parameter, mask in entries.items():
            if not isinstance(mask, Tensor):
                kind = type(mask).__name__
                raise ExportError(
                    f"masks[{layer!r}][{parameter!r}]: expected a tensor of 0 and 1, got {kind}"
                )
            # A copy, as safetensors refuses masks that share memory (expanded ones).
            flat[f"{layer}{_SEPARATOR}{parameter}"] = mask.detach().cpu().contiguous().clone()
    with replacing(path) as temporary:
        safetensors.torch.save_file(flat, temporary)


def load_masks(path: str | os.PathLike[str]) -> Masks:
    """Read a mask file, safetensors or ``torch.save``d; ``check_masks`` tells whether it fits a model.

    Raises:
        ExportError: if the file is neither, or its contents are no masks.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read the mask file {path}: {error.strerror}") from error
    # A safetensors file is a length of eight bytes, then JSON; torch.save writes a zip or a bare pickle.
    pickled = content[8:9] != b"{" and (content[:2] == b"PK" or content[:1] == b"\x80")
    return _from_torch(path) if pickled else _from_safetensors(content, path)


def _from_safetensors(content: bytes, path: Path) -> Masks:
    try:
        flat = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ExportError(
            f"{path} is neither a safetensors nor a torch.save file ({error}); "
            "expected a file written by save_masks"
        ) from error
    masks: Masks = {}
    for key, mask in flat.items():
        layer, separator, parameter = key.rpartition(_SEPARATOR)
        if not separator:
            raise ExportError(
                f"{path}: the entry {key!r} names no parameter; expected keys such as 'conv1::weight'. "
                "Is this a file of weights rather than masks?"
            )
        masks.setdefault(layer, {})[parameter] = mask
    return masks


def _from_torch(path: Path) -> Masks:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise ExportError(
            f"{path} is no mask file: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            "Expected {layer: {'weight': mask, 'bias': mask}} of plain tensors; write it with save_masks."
        ) from error
    if not isinstance(content, Mapping):
        raise ExportError(f"{path}: expected {{layer: {{'weight': mask}}}}, got {type(content).__name__}")
    masks: Masks = {}
    for layer, entries in content.items():
        if not isinstance(entries, Mapping):
            raise ExportError(
                f"{path}: {layer!r} holds a {type(entries).__name__}, expected {{'weight': mask}}. "
                "Is this a file of weights rather than masks?"
            )
        masks[str(layer)] = {str(name): mask for name, mask in entries.items() if mask is not None}
    return masks


def check_masks(masks: Mapping[str, Mapping[str, Tensor]], model: nn.Module) -> Masks:
    """The masks in the shape, dtype and on the device of the parameters they belong to.

    Masks that broadcast to their parameter (``(64, 1, 1, 1)`` on a ``(64, 3, 7, 7)`` weight) are expanded;
    those of activations stay as they are.

    Raises:
        SpeedupError: lists every unknown layer or parameter, wrong shape, and value that is not 0 or 1.
    """
    if not masks:
        raise SpeedupError("no masks were given; expected {layer name: {'weight': mask}}")
    layers = dict(model.named_modules())
    problems: list[str] = []
    checked: Masks = {}
    for layer, parameter, mask in _entries(masks, problems):
        if layer in layers and is_activation(layers[layer], parameter):
            problem = _problem(mask, None)
            problems += [f"{layer}.{parameter}: {problem}"] if problem else []
            checked.setdefault(layer, {})[parameter] = mask
            continue
        target = _parameter(layers, layer, parameter, problems)
        if target is None:
            continue
        problem = _problem(mask, target)
        if problem:
            problems.append(f"{layer}.{parameter}: {problem}")
        else:
            fitted = mask.detach().to(device=target.device, dtype=target.dtype).expand(target.shape)
            checked.setdefault(layer, {})[parameter] = fitted
    if problems:
        raise SpeedupError("the masks do not fit the model:\n" + "\n".join(f"  {line}" for line in problems))
    return checked


def is_activation(layer: nn.Module, name: str) -> bool:
    """Whether a mask called ``name`` is for an activation of ``layer`` rather than a parameter."""
    return name in ACTIVATIONS and name not in layer._parameters


def _entries(masks: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, str, Any]]:
    for layer, entries in masks.items():
        if not isinstance(entries, Mapping):
            kind = type(entries).__name__
            problems.append(f"{layer}: expected {{'weight': mask, 'bias': mask}}, got {kind}")
            continue
        for parameter, mask in entries.items():
            if mask is not None:
                yield layer, parameter, mask


def _parameter(
    layers: Mapping[str, nn.Module], layer: str, parameter: str, problems: list[str]
) -> nn.Parameter | None:
    module = layers.get(layer)
    if module is None:
        unknown = f"{layer}: the model has no such layer{did_you_mean(layer, (n for n in layers if n))}"
        if unknown not in problems:
            problems.append(unknown)
        return None
    target = module._parameters.get(parameter)
    if target is None:
        have = ", ".join(n for n, p in module._parameters.items() if p is not None) or "none"
        problems.append(
            f"{layer}.{parameter}: {type(module).__name__} has no such parameter (it has: {have})"
        )
    return target


def _problem(mask: Any, target: Tensor | None) -> str | None:
    """What is wrong with ``mask`` (for ``target``, if it is known), or ``None``."""
    if not isinstance(mask, Tensor):
        return f"expected a tensor of 0 and 1, got {type(mask).__name__}"
    try:
        fits = target is None or mask.expand(target.shape).shape == target.shape
    except RuntimeError:
        fits = False
    if target is not None and not fits:
        return f"expected shape {tuple(target.shape)} or one that broadcasts to it, got {tuple(mask.shape)}"
    if mask.is_floating_point() and bool(mask.isnan().any()):
        return f"expected only 0 and 1, got {int(mask.isnan().sum())} NaN"
    if mask.dtype is not torch.bool:
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.numel():
            return f"expected only 0 and 1, got {wrong.numel()} other values such as {wrong[0].item():.6g}"
    return None
