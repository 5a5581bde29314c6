"""Quantization after training: ranges are chosen on a few batches, nothing is trained.

    quantizer = PTQ_Quantizer(model, [{"quant_bits": 8}], data=batches, equalize=True, bias_correction=True)
    module = quantizer.compress()
    print(quantizer.outcomes["equalize"])      # what was done, and what was refused for which reason

Order: equalize, smooth, calibrate, adaround, bias correction. The user's model stays as it is; parameters
that a method changes are the compressed module's own (``changed`` of its outcome names them), so whoever
trains on makes the optimizer from ``module.parameters()``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, final

import torch
from torch import fx, nn

from fxcompress.config import Selection
from fxcompress.config.settings import QuantSettings
from fxcompress.errors import ConfigError, did_you_mean
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import OBSERVERS
from fxcompress.quantization.adaround import AdaptiveRounding, adaround
from fxcompress.quantization.base import Quantizer
from fxcompress.quantization.bias_correction import correct_biases
from fxcompress.quantization.equalize import equalize
from fxcompress.quantization.outcome import Outcome
from fxcompress.quantization.placement import COMPUTING, layer_calls, tensors_of, weight_argument
from fxcompress.quantization.resolution import lost_channels
from fxcompress.quantization.smooth import is_linear, smooth
from fxcompress.quantization.wrapper import Wrapper


@final
class PTQ_Quantizer(Quantizer):
    """Chooses the ranges of activations by ``observer`` on ``data``; weights over their own range.

    ``observer``: ``minmax``, ``moving_average``, ``percentile``, ``mse`` or ``entropy``
    (``fxcompress.numerics.observers``). The other options lessen what rounding costs.
    """

    name = "ptq"

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        data: Iterable[Any] | None = None,
        observer: str = "minmax",
        equalize: bool = False,
        smooth: float | None = None,
        adaround: int | Literal[False] = False,
        bias_correction: bool = False,
        **options: Any,
    ) -> None:
        """As the base's, and ``observer``.

        Args:
            equalize: share ranges out between neighbouring layers (``quantization.equalize``).
            smooth: α of SmoothQuant, 0.5 in the paper: move outliers into weights (``quantization.smooth``).
            adaround: learn the rounding of weights in so many steps a layer (``quantization.adaround``).
            bias_correction: take mean errors off by biases (``quantization.bias_correction``).

        Raises:
            ConfigError: for an unknown observer, an option of a wrong value, or one that lacks data.
        """
        names = [name for name in OBSERVERS if name not in ("last", "fixed")]
        if not isinstance(observer, str) or observer not in names:
            hint = did_you_mean(str(observer), names) or f"; expected one of {', '.join(names)}"
            raise ConfigError(f"observer: expected the name of an observer, got {observer!r}{hint}")
        if smooth is not None and not (_is_number(smooth) and 0 <= smooth <= 1):
            raise ConfigError(f"smooth: expected α from 0 to 1 (0.5 in the paper) or None, got {smooth!r}")
        if adaround is not False and not (_is_number(adaround, int) and adaround >= 1):
            raise ConfigError(f"adaround: expected steps per layer (1000, say) or False, got {adaround!r}")
        for name, flag in (("equalize", equalize), ("bias_correction", bias_correction)):
            if not isinstance(flag, bool):
                raise ConfigError(f"{name}: expected True or False, got {flag!r}")
        asked = {"smooth": smooth is not None, "adaround": adaround, "bias_correction": bias_correction}
        needy = [name for name, wanted in asked.items() if wanted]
        if needy and data is None:
            raise ConfigError(f"{needy[0]}: expected data=... (batches to measure on), got none")
        if isinstance(data, Iterator) and needy:
            data = list(data)  # several methods go through it
        super().__init__(model, config_list, optimizer, data=data, **options)
        self.observer = observer
        self.equalize, self.smooth = equalize, smooth
        self.adaround, self.bias_correction = adaround, bias_correction
        self.outcomes: dict[str, Outcome] = {}
        """What each method did, and what it refused for which reason, by its option's name."""

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> FakeQuantize:
        """Of an activation the chosen observer, which sees what ``calibrate`` shows it and no training."""
        if quant_type == "weight":
            return AdaptiveRounding(grid) if self.adaround else FakeQuantize(grid)
        quantizer = FakeQuantize(grid, OBSERVERS[self.observer]())
        quantizer.observing = False
        return quantizer

    def prepare(self, module: CompiledModule, settings: Mapping[str, QuantSettings]) -> None:
        """Equalize and smooth, while everything is float."""
        if self.data is None:
            words = "ptq: no data was given: nothing is rounded until the model has run in train mode"
            module.notes = (*module.notes, words)
        layers = _weighted_calls(module, settings)
        if self.equalize:
            self._doubt_equalization(module, settings)
            self._tell("equalize", equalize(module, layers))
        if self.smooth is not None:
            linear = [node for node in layers if is_linear(node)]
            self._tell("smooth", smooth(module, linear, self.run_data, self.smooth))

    def finish(self, module: CompiledModule) -> None:
        """Learn rounding and correct biases."""
        names = {n for layer in self.settings for n in self._nodes.get(layer, ())}
        layers = [n for n in module.graph.nodes if n.name in names and "weight" in tensors_of(n)]
        with eval_mode(module):
            if self.adaround and self.data is not None:
                self._tell("adaround", adaround(module, layers, self.data, self.adaround))
            if self.bias_correction and self.data is not None:
                self._tell("bias_correction", correct_biases(module, layers, self.data))
        lost = lost_channels(module, layers)
        if lost:
            told = ", ".join(f"{name!r} ({some} of {all_})" for name, (some, all_) in lost.items())
            warnings.warn(
                f"fxcompress: one scale for a whole weight rounds output channels to nothing: {told}; give "
                "'quant_scheme': {'weight': 'per_channel_symmetric'}, or try equalize=True or more bits",
                stacklevel=4,
            )

    def _doubt_equalization(self, module: CompiledModule, settings: Mapping[str, QuantSettings]) -> None:
        """Note where weights gain nothing by equalization."""
        schemes = [s.quant_scheme["weight"] for s in settings.values() if "weight" in s.quant_types]
        each = sum(scheme.startswith("per_channel") for scheme in schemes)
        if each:
            module.notes = (
                *module.notes,
                f"equalize: the weights of {each} of {len(schemes)} layers have a scale per output channel "
                "and need it not; only activations with uneven channels may gain: compare without it",
            )

    def _tell(self, method: str, outcome: Outcome) -> None:
        """Keep what was done, and note it in a line with the module."""
        self.outcomes[method] = outcome
        module = self._bound(method)
        words = f"{method}: {len(outcome.done)} done, {len(outcome.refused)} refused"
        if outcome.changed:
            words += f"; {len(outcome.changed)} parameters are no longer those of the model it was made from"
        module.notes = (*module.notes, words)


def _is_number(value: Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _weighted_calls(module: CompiledModule, settings: Mapping[str, QuantSettings]) -> list[fx.Node]:
    """The calls that compute with a weight that is to be rounded, in order of execution."""
    found = {
        call.node
        for name, calls in layer_calls(module).items()
        if name in settings and "weight" in settings[name].quant_types
        for call in calls
        if call.op in COMPUTING and weight_argument(call) is not None
    }
    return [node for node in module.graph.nodes if node in found]
