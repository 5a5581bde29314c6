"""Sensitivity: what pruning one layer at a time does to a model, and what to prune given that.

analysis = SensitivityAnalysis(model, evaluate, x, file="sensitivity.csv")
analysis.run()                                    # resumes where an interrupted run stopped
analysis.plot("sensitivity.png")
config_list = analysis.config_list(parameters=0.5)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress.compiler import compile as compile_model
from fxcompress.config import known_pruners, parse, select, targets_of_model
from fxcompress.errors import ConfigError, FxcompressError, did_you_mean
from fxcompress.export.files import replacing
from fxcompress.export.tables import read_curves, write_curves
from fxcompress.graph.capture import capture
from fxcompress.graph.module import eval_mode
from fxcompress.progress import shown

SPARSITIES = tuple(round(0.1 * step, 1) for step in range(1, 10))


class SensitivityAnalysis:
    """The metric of a model with one layer masked, for every layer and sparsity (Li et al., ICLR 2017).

    Args:
        model: the trained model; nothing of it changes.
        evaluate: ``evaluate(module) -> float``, larger is better (accuracy, or a negative loss).
        example_inputs: as for ``compile``.
        layers: names of the layers; all that the pruner supports by default.
        sparsities: the shares of each layer's channels that are masked.
        pruner: the criterion.
        options: more of a config entry, ``granularity`` for example.
        file: a CSV file that holds what has been measured: read at the start if it exists, replaced after
            every measurement.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[nn.Module], float],
        example_inputs: Any = None,
        *,
        layers: Sequence[str] | None = None,
        sparsities: Sequence[float] = SPARSITIES,
        pruner: str = "l1",
        options: dict[str, Any] | None = None,
        file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.entry = {"pruner": pruner, **(options or {})}
        everything = parse([{**self.entry, "sparsity": 0.5}])
        known = select(everything, targets_of_model(model), known_pruners(), captured=False).pruning
        wrong = next((name for name in layers or () if name not in known), None)
        if wrong is not None:
            raise ConfigError(
                f"layers: {wrong!r} is no layer that pruner {pruner!r} can prune{did_you_mean(wrong, known)}"
            )
        if not sparsities or not all(0 < s < 1 for s in sparsities):
            raise ConfigError(f"sparsities: expected numbers in (0, 1), got {list(sparsities)}")
        self.layers = tuple(known if layers is None else layers)
        self.sparsities = tuple(sorted(sparsities))
        self.evaluate = evaluate
        self.file = None if file is None else Path(file)
        self.results: dict[str, dict[float, float]] = {}
        """Layer → sparsity → metric; sparsity 0 is the model as it is."""
        self._sizes = {name: p.numel() for name, p in model.named_parameters()}
        self._model = model
        self._example_inputs = example_inputs
        if self.file is not None and self.file.exists():
            self.results = read_curves(self.file, self.layers, "a sensitivity analysis")

    def run(self) -> dict[str, dict[float, float]]:
        """Measure what has not been measured yet; returns ``results``."""
        dense = capture(self._model, self._example_inputs).eval()
        missing = [
            (layer, sparsity)
            for layer in self.layers
            for sparsity in (0.0, *self.sparsities)
            if sparsity not in self.results.get(layer, {})
        ]
        base: float | None = next((curve[0.0] for curve in self.results.values() if 0.0 in curve), None)
        for layer, sparsity in shown(missing, "sensitivity"):
            if sparsity == 0.0:
                base = self._measured(dense) if base is None else base
                metric = base
            else:
                entry = {**self.entry, "sparsity": sparsity, "op_names": [layer]}
                metric = self._measured(compile_model(dense, [entry], dependency_aware=False))
            self.results.setdefault(layer, {})[sparsity] = metric
            if self.file is not None:
                self.export(self.file)
        return self.results

    def _measured(self, module: nn.Module) -> float:
        with eval_mode(module):
            return float(self.evaluate(module))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write ``results`` as CSV: one line per layer, one column per sparsity."""
        write_curves(path, self.results)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw metric over sparsity, one line per layer; the suffix of ``path`` says the format."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise FxcompressError("plot needs matplotlib: pip install 'fxcompress[plots]'") from error
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        for layer, curve in self.results.items():
            points = sorted(curve.items())
            axes.plot([s for s, _ in points], [m for _, m in points], marker=".", label=layer)
        axes.set(xlabel="sparsity of the layer", ylabel="metric")
        axes.legend(fontsize="x-small", ncols=1 + len(self.results) // 20)
        with replacing(path) as temporary:
            figure.savefig(temporary)

    def config_list(self, parameters: float) -> list[dict[str, Any]]:
        """Entries that remove about ``1 − parameters`` of the layers' weights where it hurts least.

        Every layer gets the highest sparsity at which it alone costs at most a drop ``d`` of the metric, and
        ``d`` is the smallest for which that is enough.

        Args:
            parameters: the share of the weights of the analyzed layers that may be left, in (0, 1).

        Raises:
            FxcompressError: if not everything has been measured, or no sparsity measured is enough.
        """
        if not 0 < parameters < 1:
            raise ConfigError(f"config_list: parameters: expected a number in (0, 1), got {parameters!r}")
        curves = {layer: self.results.get(layer, {}) for layer in self.layers}
        if any(set(curve) < {0.0, *self.sparsities} for curve in curves.values()):
            raise FxcompressError("config_list: not everything has been measured; call run() first")
        sizes = {layer: self._size(layer) for layer in curves}
        drops = sorted({curve[0.0] - metric for curve in curves.values() for metric in curve.values()})
        for drop in drops:
            chosen = {
                layer: max(s for s, metric in curve.items() if curve[0.0] - metric <= drop)
                for layer, curve in curves.items()
                if any(curve[0.0] - metric <= drop for metric in curve.values())
            }
            removed = sum(sizes[layer] * sparsity for layer, sparsity in chosen.items())
            if removed >= (1 - parameters) * sum(sizes.values()):
                return [
                    {**self.entry, "sparsity": sparsity, "op_names": [layer]}
                    for layer, sparsity in chosen.items()
                    if sparsity > 0
                ]
        raise FxcompressError(
            f"config_list: parameters={parameters}: the sparsities measured (up to {self.sparsities[-1]}) "
            "remove less; measure higher ones or raise the budget"
        )

    def _size(self, layer: str) -> int:
        prefix = f"{layer}." if layer else ""
        return sum(size for name, size in self._sizes.items() if name.rpartition(".")[0] + "." == prefix)
