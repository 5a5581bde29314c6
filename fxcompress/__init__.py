"""fxcompress: make PyTorch models smaller and faster, with the numbers of the model you fine-tuned.

What it offers is imported when first asked for: ``fxcompress --help`` has no use for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxcompress.compiler import apply_masks, compile, speedup
    from fxcompress.config.explain import explain
    from fxcompress.errors import (
        CaptureError,
        ConfigError,
        ExportError,
        FxcompressError,
        PassError,
        SizeWarning,
        SpeedupError,
    )
    from fxcompress.export.archive import load, save
    from fxcompress.export.masks import load_masks, save_masks
    from fxcompress.export.onnx import export_onnx
    from fxcompress.export.seeds import export_model
    from fxcompress.graph.capture import capture
    from fxcompress.graph.module import CompiledModule
    from fxcompress.page.write import write_report

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CompiledModule",
    "ConfigError",
    "ExportError",
    "FxcompressError",
    "PassError",
    "SizeWarning",
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

_HOMES = {
    "compiler": ("apply_masks", "compile", "speedup"),
    "config": ("explain",),
    "errors": (
        "CaptureError",
        "ConfigError",
        "ExportError",
        "FxcompressError",
        "PassError",
        "SizeWarning",
        "SpeedupError",
    ),
    "export.archive": ("load", "save"),
    "export.masks": ("load_masks", "save_masks"),
    "export.onnx": ("export_onnx",),
    "export.seeds": ("export_model",),
    "graph.capture": ("capture",),
    "graph.module": ("CompiledModule",),
    "page.write": ("write_report",),
}

if not TYPE_CHECKING:  # for type checkers the names above are all there are

    def __getattr__(name: str) -> Any:
        """A public name, or a submodule."""
        home = next((module for module, names in _HOMES.items() if name in names), None)
        if home is not None:
            globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return globals()[name]
        missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name.startswith("_"):
            raise missing
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            raise (missing if error.name == f"{__name__}.{name}" else error) from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
