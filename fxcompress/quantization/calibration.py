"""``calibration_config``: how every tensor of every layer is rounded, as plain numbers.

    {"conv1": {"weight_bits": 8, "weight_scale": [0.012, ...], "weight_zero_point": [0, ...],
               "tracked_min_input": -1.2, "tracked_max_input": 3.4, "input_bits": 8, ...}}

The keys are those of NNI's ``calibration_config``; the file is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxcompress.errors import ConfigError, ExportError
from fxcompress.numerics.fake_quantize import FakeQuantize

Tensors = Mapping[str, FakeQuantize]


def describe(tensors: Tensors) -> dict[str, Any]:
    """The entry of one layer: ``weight``, ``input``, ``input_1``, ... and ``output`` → what rounds it."""
    entry: dict[str, Any] = {}
    for name, quantizer in tensors.items():
        grid = quantizer.grid
        entry[f"{name}_bits"] = grid.bits
        entry[f"{name}_dtype"] = "int" if grid.signed else "uint"
        each = "per_tensor" if grid.axis is None else "per_channel"
        entry[f"{name}_scheme"] = f"{each}_{'symmetric' if grid.symmetric else 'affine'}"
        if quantizer.is_calibrated:
            low, high = quantizer.range()
            scale, zero_point = quantizer.deployed()
            entry[f"{name}_scale"] = scale.tolist()
            entry[f"{name}_zero_point"] = zero_point.tolist()
            entry[f"tracked_min_{name}"], entry[f"tracked_max_{name}"] = low.tolist(), high.tolist()
    return entry


def restore(layer: str, tensors: Tensors, entry: Mapping[str, Any]) -> None:
    """Give a layer's tensors the ranges, scales and zero points of its entry.

    Raises:
        ConfigError: naming the layer, if the entry is of another number of bits or channels.
    """
    for name, quantizer in tensors.items():
        if f"{name}_scale" not in entry:
            continue
        bits = entry[f"{name}_bits"]
        if bits != quantizer.grid.bits:
            raise ConfigError(
                f"calibration_config[{layer!r}]: {name}_bits: expected {quantizer.grid.bits}, as the config "
                f"list says, got {bits}; calibrate anew or change quant_bits"
            )
        numbers = {
            "scale": torch.tensor(entry[f"{name}_scale"], dtype=torch.float32),
            "zero_point": torch.tensor(entry[f"{name}_zero_point"], dtype=quantizer.zero_point.dtype),
            "low": torch.tensor(entry[f"tracked_min_{name}"], dtype=torch.float32),
            "high": torch.tensor(entry[f"tracked_max_{name}"], dtype=torch.float32),
        }
        for buffer, value in numbers.items():
            _check(quantizer, buffer, value, f"calibration_config[{layer!r}]: {name}_{buffer}")
        quantizer.adopt(**numbers)


def _check(quantizer: FakeQuantize, buffer: str, value: Tensor, where: str) -> None:
    held = getattr(quantizer, buffer)
    per_slice = quantizer.grid.axis is not None
    if (value.dim() == 1) != per_slice or (held.numel() and held.shape != value.shape):
        expected = list(held.shape) if held.numel() else "one number for each channel"
        got = list(value.shape)
        raise ConfigError(f"{where}: expected {expected}, got {got}; the entry is of another layer or scheme")


def write(config: Mapping[str, Any], path: Path) -> None:
    """Write as JSON."""
    path.write_text(json.dumps(config, indent=1))


def read(config: Mapping[str, Any] | str | os.PathLike[str]) -> Mapping[str, Any]:
    """The config itself, or that of a file.

    Raises:
        ExportError: if the file holds none.
    """
    if isinstance(config, Mapping):
        return config
    try:
        found = json.loads(Path(config).read_text())
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{config}: {type(error).__name__}: {error}\nExpected a calibration file that export_model wrote."
        ) from error
    if not isinstance(found, dict):
        raise ExportError(f"{config}: expected an object with an entry per layer, got {type(found).__name__}")
    return found
