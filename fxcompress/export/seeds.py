"""``export_model``: the files that NNI's pruners write (weights, masks, ONNX), from a masked model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import ExportError
from fxcompress.export.files import replacing
from fxcompress.export.masks import Masks, save_masks
from fxcompress.export.onnx import export_onnx
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_fake_quant import CONTAINER
from fxcompress.pruning.masks import get_masks
from fxcompress.quantization.calibration import write

_SUFFIX = "_mask"
# Buffers that insert_masks adds beside the masks of parameters.
_INSERTED = re.compile(r"_activation_mask_\w+_\d+$|_?statistics_mask")


def export_model(
    module: nn.Module,
    model_path: str | os.PathLike[str],
    mask_path: str | os.PathLike[str] | None = None,
    onnx_path: str | os.PathLike[str] | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Write the masked weights, and if wanted the masks and an ONNX model; each replaces its file at the end.

    Args:
        module: a model with masks (buffers ``<parameter>_mask`` beside the parameters); it is not changed.
        model_path: a ``torch.save``d dict of tensors under the original model's ``state_dict`` keys, weights
            multiplied by their masks; ``torch.load(weights_only=True)`` reads it.
        mask_path: a mask file (see ``load_masks``).
        onnx_path: the masked network as ONNX, compared with onnxruntime.
        input_shape: of the ONNX model's input, batch included; by default the model's example inputs.

    Raises:
        ExportError: if masks are asked for and there are none, or the ONNX model disagrees.
    """
    masks = get_masks(module)
    if mask_path is not None and not masks:
        raise ExportError("mask_path was given but the model has no masks; compile it with a sparsity first")
    example = None if input_shape is None or onnx_path is None else _example(module, input_shape)
    with replacing(model_path) as temporary:
        torch.save(masked_state_dict(module, masks), temporary)
    if mask_path is not None:
        save_masks(masks, mask_path)
    if onnx_path is not None:
        export_onnx(module, onnx_path, example)


def export_quantized(
    module: CompiledModule,
    calibration: Mapping[str, Any],
    model_path: str | os.PathLike[str],
    calibration_path: str | os.PathLike[str] | None = None,
    onnx_path: str | os.PathLike[str] | None = None,
    input_shape: Sequence[int] | None = None,
) -> None:
    """Write the weights of a quantized model as they are, and if wanted its calibration and ONNX model.

    Args:
        module: a model with fake-quantize nodes; it is not changed.
        calibration: what ``calibration_path`` is to hold.
        model_path: as for ``export_model``.
        calibration_path: a JSON file.
        onnx_path: see ``export_onnx``.
        input_shape: as for ``export_model``.
    """
    example = None if input_shape is None or onnx_path is None else _example(module, input_shape)
    state = masked_state_dict(module, get_masks(module))
    with replacing(model_path) as temporary:
        torch.save({n: t for n, t in state.items() if not n.startswith(f"{CONTAINER}.")}, temporary)
    if calibration_path is not None:
        with replacing(calibration_path) as temporary:
            write(calibration, temporary)
    if onnx_path is not None:
        export_onnx(module, onnx_path, example)


def masked_state_dict(module: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The state dict under the original keys: weights multiplied, no mask buffers, ties kept."""
    by_name = {_join(layer, name): mask for layer, entries in masks.items() for name, mask in entries.items()}
    mask_names = {name + _SUFFIX for name in by_name}
    products: dict[int, Tensor] = {}
    for name, mask in by_name.items():
        owner, _, attribute = name.rpartition(".")
        parameter = module.get_submodule(owner).get_parameter(attribute)
        products[id(parameter)] = parameter.detach() * mask
    return {
        name: products.get(id(value), value.detach())
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
        and name not in mask_names
        and not _INSERTED.match(name.rpartition(".")[2])
    }


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _example(module: nn.Module, shape: Sequence[int]) -> Any:
    """One input of ``shape`` in the dtype the model was captured with (float as its parameters otherwise)."""
    known: list[Any] = []
    if isinstance(module, CompiledModule):
        known = [x for x in pytree.tree_leaves(module.example_inputs) if isinstance(x, Tensor)]
    if len(known) > 1:
        raise ExportError(
            f"input_shape describes one input, the model takes {len(known)}; leave input_shape out "
            "to use its example inputs, or call export_onnx with example_inputs"
        )
    like = known[0] if known else next(module.parameters(), torch.empty(0))
    if not like.is_floating_point():
        return like.new_zeros(tuple(shape))
    return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)
