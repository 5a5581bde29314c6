"""``Wrapper``: a layer that a quantizer works on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from fxcompress.config.settings import QuantSettings
from fxcompress.training.wrapper import LayerWrapper


class Wrapper(LayerWrapper):
    """A ``LayerWrapper`` with the quantization keys of its config entries, defaults filled in.

    ``module`` of a functional operator (``add``) is an empty module.
    """

    def __init__(self, name: str, module: nn.Module, settings: QuantSettings) -> None:
        config: dict[str, Any] = asdict(settings)
        del config["sources"]
        super().__init__(name, module, config)
        self.settings = settings
