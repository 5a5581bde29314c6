"""fxcompress: make PyTorch models smaller and faster, with the numbers of the model you fine-tuned.

What it offers is imported when first asked for: ``fxcompress --help`` has no use for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
]

# Every submodule that is imported on the way becomes an attribute of this package too.
_MODULES = (
    "compiler", "config", "errors", "export.archive", "export.masks", "export.onnx", "export.seeds",
    "graph.capture", "graph.module",
)  # fmt: skip

if not TYPE_CHECKING:  # for type checkers the names above are all there are

    def __getattr__(name: str) -> Any:
        """Import everything that is public, and return ``name`` of it."""
        if not name.startswith("__"):  # not what Python itself looks for
            modules = [importlib.import_module(f"{__name__}.{module}") for module in _MODULES]
            for public in __all__:
                globals()[public] = next(vars(module)[public] for module in modules if public in vars(module))
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
