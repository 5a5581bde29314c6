"""The tensors of a module as a table (names, ties, flags) and a safetensors file (each stored once)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fxcompress.errors import ExportError
from fxcompress.export.hierarchy import check_name
from fxcompress.export.values import Json, malformed


def write_table(root: nn.Module) -> tuple[list[Json], dict[str, Tensor]]:
    """Every parameter and buffer below ``root`` in order, and the distinct tensors by their first name.

    Raises:
        ExportError: for tensors without plain values (sparse, quantized, meta).
    """
    first: dict[int, str] = {}
    table: list[Json] = []
    tensors: dict[str, Tensor] = {}
    for name, tensor, flags in _named(root):
        check_name(name)
        if id(tensor) in first:
            table.append({"name": name, **flags, "of": first[id(tensor)]})
            continue
        first[id(tensor)] = name
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ExportError(
                f"{name} is a {'meta' if tensor.is_meta else tensor.layout} tensor; expected dense values\n"
                "Convert it (`.to_dense()`, `.dequantize()`, `to_empty`) before saving."
            )
        tensors[name] = tensor
        table.append(
            {"name": name, **flags, "requires_grad": tensor.requires_grad, "stride": _stride(tensor)}
        )
    return table, tensors


def _named(root: nn.Module) -> Iterator[tuple[str, Tensor, dict[str, Json]]]:
    for path, module in root.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter, {"kind": "parameter"}
        for name, buffer in module._buffers.items():
            if buffer is not None:
                persistent = name not in module._non_persistent_buffers_set
                yield prefix + name, buffer, {"kind": "buffer", "persistent": persistent}


def _stride(tensor: Tensor) -> list[int] | None:
    """The strides of a dense tensor that is not laid out row by row (channels last, transposed)."""
    plain = torch.empty(tensor.shape, device="meta").stride()
    return (
        list(tensor.stride())
        if tensor.stride() != plain and _is_dense(tensor.shape, tensor.stride())
        else None
    )


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    steps = sorted((step, size) for size, step in zip(shape, stride, strict=True) if size > 1)
    expected = 1
    for step, size in steps:
        if step != expected:
            return False
        expected *= size
    return True


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file of ``tensors``, moved to the CPU; those that share memory are stored one by one.

    Raises:
        ExportError: for a dtype safetensors does not hold.
    """
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        key = plain.untyped_storage().data_ptr()
        partial = plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
        stored[name] = plain.clone() if key in seen or partial else plain
        seen.add(key)
    try:
        safetensors.torch.save_file(stored, path)
    except (KeyError, ValueError, SafetensorError) as error:
        kinds = sorted({str(t.dtype) for t in stored.values()})
        raise ExportError(
            f"safetensors cannot hold tensors of {', '.join(kinds)}: {type(error).__name__}: {error}\n"
            "Convert them to a real floating-point or integer dtype before saving."
        ) from error


def read_tensors(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, each in memory of its own.

    Raises:
        ExportError: if ``data`` is not such a file.
    """
    try:
        loaded = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise malformed(where, f"{len(data)} bytes", error) from error
    # Clones are aligned as torch's kernels expect; each loaded tensor is dropped on the way.
    return {name: loaded.pop(name).clone() for name in list(loaded)}


def place_tensors(root: nn.Module, table: list[Json], tensors: dict[str, Tensor]) -> None:
    """Register ``tensors`` in ``root`` as the table says.

    Raises:
        ExportError: if table, tensors and layers do not fit together.
    """
    placed: dict[str, Tensor] = {}
    for row in table:
        name = check_name(row["name"])
        if "of" in row:
            tensor = placed[row["of"]]
        elif name in tensors:
            tensor = _restored(tensors[name], row, name)
        else:
            raise ExportError(
                f"weights.safetensors lacks {name!r}; the file is damaged, save the model again"
            )
        placed[name] = tensor
        _register(root, name, tensor, row)
    left = [n for n, t in [*root.named_parameters(), *root.named_buffers()] if t.is_meta]
    spare = sorted(set(tensors) - set(placed))
    if left or spare:
        raise ExportError(
            f"layers and weights disagree: {', '.join(left or spare)} "
            f"{'has no values' if left else 'belongs nowhere'}; the file is damaged, save the model again"
        )


def _restored(tensor: Tensor, row: dict[str, Any], name: str) -> Tensor:
    stride = row["stride"]
    if stride is not None:
        if len(stride) != tensor.dim() or not _is_dense(tensor.shape, stride):
            raise malformed(name, row, None)
        tensor = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
    if row["kind"] == "parameter":
        return nn.Parameter(tensor, requires_grad=bool(row["requires_grad"]))
    return tensor.requires_grad_(bool(row["requires_grad"]))


def _register(root: nn.Module, name: str, tensor: Tensor, row: dict[str, Any]) -> None:
    path, _, attribute = name.rpartition(".")
    owner = root.get_submodule(path)
    made = {**owner._parameters, **owner._buffers}.get(attribute)
    if made is not None and made.shape != tensor.shape:
        raise ExportError(
            f"{name} has shape {tuple(tensor.shape)}, its layer {owner} expects {tuple(made.shape)}; "
            "the file is damaged, save the model again"
        )
    if row["kind"] == "parameter":
        if not isinstance(tensor, nn.Parameter):
            raise malformed(name, row, None)
        owner.register_parameter(attribute, tensor)
        return
    persistent = bool(row["persistent"])
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        owner.register_buffer(attribute, tensor)
    change = (
        owner._non_persistent_buffers_set.discard if persistent else owner._non_persistent_buffers_set.add
    )
    change(attribute)
