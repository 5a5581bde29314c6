"""The abstract bases of all pruners.

    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}], optimizer)
    model = pruner.compress()              # an fx.GraphModule with masks; train it
    pruner.export_model("weights.pt", "masks.safetensors", "model.onnx", (1, 3, 224, 224))

``fxcompress.compile`` is the short way through the same classes.
"""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxcompress.config import Selection, known_pruners, parse, select, targets_of_model
from fxcompress.config.registry import PRUNABLE
from fxcompress.config.settings import PruningSettings
from fxcompress.errors import FxcompressError
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.insert_masks import insert_masks
from fxcompress.pruning.allocation import choose_global, choose_units, normalized
from fxcompress.pruning.coupled import mask_units
from fxcompress.pruning.layers import Layer, find_layers, keep_lowest_out
from fxcompress.pruning.units import find_units


class Pruner(ABC):
    """Chooses masks for the layers that the config list gives to this algorithm."""

    name: ClassVar[str]
    """The name of the algorithm in a config list."""
    op_types: ClassVar[frozenset[str]] = PRUNABLE
    """The operator types it works on; what ``default`` in ``op_types`` of an entry means."""

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        dependency_aware: bool = True,
    ) -> None:
        """Validate the config list (nothing is traced yet).

        Args:
            model: the model to prune; left as it is, its parameters are shared with the compressed model.
            config_list: see ``fxcompress.compile``; entries without ``pruner`` mean this algorithm.
            optimizer: the optimizer that trains the model; algorithms that rank once do not use it.
            example_inputs: see ``fxcompress.compile``.
            dependency_aware: choose coupled channels together, so that all masks can be removed.

        Raises:
            ConfigError: naming the entry, the key, what was expected and what was given.
        """
        named = [{"pruner": self.name, **e} if isinstance(e, dict) and _prunes(e) else e for e in config_list]
        self.selection: Selection = select(
            parse(named), targets_of_model(model), known_pruners(), captured=False
        )
        self.model = model
        self.optimizer = optimizer
        self.dependency_aware = dependency_aware
        self._example_inputs = example_inputs
        self.bound_model: CompiledModule | None = None

    def compress(self) -> CompiledModule:
        """Capture the model, insert the masks and return the masked module."""
        self.bound_model = capture(self.model, self._example_inputs)
        self.apply(self.bound_model, dict(self.selection.pruning), dependency_aware=self.dependency_aware)
        return self.bound_model

    @classmethod
    @abstractmethod
    def apply(
        cls, module: CompiledModule, settings: dict[str, PruningSettings], *, dependency_aware: bool
    ) -> None:
        """Choose masks for the layers in ``settings`` and insert them into ``module``."""

    def update_epoch(self, epoch: int) -> None:  # noqa: B027
        """Tell the pruner that an epoch begins. One-shot algorithms have nothing to do."""

    def step(self) -> None:  # noqa: B027
        """Tell the pruner that the optimizer stepped. One-shot algorithms have nothing to do."""

    def export_model(
        self,
        model_path: str | os.PathLike[str],
        mask_path: str | os.PathLike[str] | None = None,
        onnx_path: str | os.PathLike[str] | None = None,
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Write the masked weights, and on request the masks and an ONNX model.

        Args:
            model_path: state dict with masks multiplied in, under the original model's keys.
            mask_path: mask file, ``{layer: {"weight": mask, "bias": mask}}``.
            onnx_path: the masked network as ONNX.
            input_shape: shape of the input for ``onnx_path``; the captured example input by default.
        """
        if self.bound_model is None:
            raise FxcompressError(f"{type(self).__name__}.export_model: call compress() first")
        from fxcompress.export.seeds import export_model  # the export layer lies above the algorithms

        export_model(self.bound_model, model_path, mask_path, onnx_path, input_shape)


def _prunes(entry: dict[str, Any]) -> bool:
    return any(key in entry for key in ("sparsity", "total_sparsity")) and not entry.get("exclude")


class StructuredPruner(Pruner):
    """Base of pruners that rank filters (output channels): a subclass gives the score."""

    @classmethod
    @abstractmethod
    def score(cls, filters: Tensor) -> Tensor:
        """Importance of each filter, ``[n]``, from ``filters`` ``[n, weights per filter]``."""

    @classmethod
    def apply(
        cls, module: CompiledModule, settings: dict[str, PruningSettings], *, dependency_aware: bool
    ) -> None:
        """Mask the lowest-scoring filters, by coupled units or layer by layer."""
        flow = analyze_axes(module, restrict=dependency_aware)
        layers, missing = find_layers(module, flow, settings)
        notes = [f"{name}: not pruned: {reason}" for name, reason in missing.items()]
        scores = [normalized(cls.score(layer.filters().float())) for layer in layers]
        if dependency_aware:
            units = find_units(flow)
            pruned, more = choose_units(flow, units, layers, scores)
            notes += more
            mask_units(module, flow, units, pruned)
        else:
            cls._apply_per_layer(module, layers, scores)
        _report(module, notes)

    @classmethod
    def _apply_per_layer(cls, module: CompiledModule, layers: list[Layer], scores: list[Tensor]) -> None:
        masks: dict[str, Tensor] = {}
        for layers_, scores_, total in _by_entry(layers, scores):
            if total is None:
                layer, own = layers_[0], scores_[0]
                kept = [keep_lowest_out(own, math.floor((layer.settings.sparsity or 0.0) * len(own)))]
            else:
                weights = [layer.filters().shape[1] for layer in layers_]
                kept = choose_global(scores_, weights, total, layers_[0].settings.max_sparsity_per_layer)
            for layer, rows in zip(layers_, kept, strict=True):
                masks.update(layer.row_masks(module, rows))
        insert_masks(module, masks)


def _by_entry(
    layers: list[Layer], scores: list[Tensor]
) -> list[tuple[list[Layer], list[Tensor], float | None]]:
    """Layers ranked alone (``total`` None), and those that share one ``total_sparsity``."""
    alone = [
        ([a], [s], None) for a, s in zip(layers, scores, strict=True) if a.settings.total_sparsity is None
    ]
    together: dict[int, tuple[list[Layer], list[Tensor], float | None]] = {}
    for layer, score in zip(layers, scores, strict=True):
        if layer.settings.total_sparsity is not None:
            key = layer.settings.sources["total_sparsity"]
            group = together.setdefault(key, ([], [], layer.settings.total_sparsity))
            group[0].append(layer)
            group[1].append(score)
    return [*alone, *together.values()]


def _report(module: CompiledModule, notes: list[str]) -> None:
    module.notes = (*module.notes, *notes)
    for note in notes:
        warnings.warn(f"fxcompress: {note}", stacklevel=4)
