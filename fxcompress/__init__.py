"""fxcompress: make PyTorch models smaller and faster, with the numbers of the model you fine-tuned."""

from fxcompress.compiler import apply_masks, compile, speedup
from fxcompress.config import explain
from fxcompress.errors import (
    CaptureError,
    ConfigError,
    ExportError,
    FxcompressError,
    PassError,
    SpeedupError,
)
from fxcompress.export.archive import load, save
from fxcompress.export.masks import load_masks, save_masks
from fxcompress.export.onnx import export_onnx
from fxcompress.export.seeds import export_model
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule
from fxcompress.page import write_report

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CompiledModule",
    "ConfigError",
    "ExportError",
    "FxcompressError",
    "PassError",
    "SpeedupError",
    "apply_masks",
    "capture",
    "compile",
    "explain",
    "export_model",
    "export_onnx",
    "load",
    "load_masks",
    "save",
    "save_masks",
    "speedup",
    "write_report",
]
