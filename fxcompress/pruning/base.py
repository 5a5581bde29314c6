"""``Pruner``: the abstract base of all pruners, and their life in a training loop.

    pruner = L1FilterPruner(model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}], optimizer)
    model = pruner.compress()              # an fx.GraphModule with masks; train it
    for epoch in range(epochs):
        pruner.update_epoch(epoch)
        for batch in batches:
            ...
            optimizer.step()               # masks that change by the step are recomputed here
    pruner.export_model("weights.pt", "masks.safetensors", "model.onnx", (1, 3, 224, 224))

``fxcompress.compile`` is the short way through the same classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn

from fxcompress.config import Selection, known_pruners, parse, refuse_schedule, select, targets_of_model
from fxcompress.config.registry import PRUNABLE
from fxcompress.config.settings import AMOUNTS, PruningSettings
from fxcompress.errors import FxcompressError
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_masks import accept_masks, insert_masks, own_masks, reset_masks
from fxcompress.pruning.masks import checked
from fxcompress.pruning.summary import mask_table
from fxcompress.pruning.wrapper import Wrapper
from fxcompress.training.compressor import Compressor, LossFn
from fxcompress.training.named import refuse_options


class Pruner(Compressor[Wrapper]):
    """Chooses masks for the layers that the config list gives to this algorithm.

    A subclass overrides ``calc_mask``, which is asked for every selected layer when the masks are first
    inserted and after every step of the optimizer; or ``choose``, which masks all layers at once.
    """

    kind = "pruner"
    op_types: ClassVar[frozenset[str]] = PRUNABLE
    """The operator types it works on; what ``default`` in ``op_types`` of an entry means."""
    schedule_keys: ClassVar[frozenset[str]] = frozenset()
    """The keys of schedules in a config entry that it follows; others are refused."""

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        dependency_aware: bool = True,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        """Validate the config list (nothing is traced yet).

        Args:
            model: the model to prune; left as it is, its parameters are shared with the compressed model.
            config_list: see ``fxcompress.compile``; entries without ``pruner`` mean this algorithm. Or what
                has been selected by one.
            optimizer: the optimizer that trains the model: its steps drive masks that change by the step.
                Where it is made later (Lightning, a trainer), ``use_optimizer`` takes it.
            example_inputs: see ``fxcompress.compile``.
            dependency_aware: choose coupled channels together, so that all masks can be removed.
            data: batches for algorithms that measure activations or gradients, see ``fxcompress.compile``.
            loss_fn: ``loss_fn(output, batch)`` for algorithms that need gradients.

        Raises:
            ConfigError: naming the entry, the key, what was expected and what was given.
        """
        if not isinstance(config_list, Selection):
            config_list = self._select(model, config_list, self.name, self.op_types)
        super().__init__(
            model, config_list, optimizer, example_inputs=example_inputs, data=data, loss_fn=loss_fn
        )
        self.dependency_aware = dependency_aware
        self.settings: dict[str, PruningSettings] = {}

    # -- masks ---------------------------------------------------------------------------------------------
    def compress(self) -> CompiledModule:
        """Capture the model, insert the masks and return the masked module.

        Raises:
            FxcompressError: if it was called before: two masked modules would follow one optimizer.
        """
        if self.bound_model is not None:
            raise FxcompressError(
                f"{type(self).__name__}.compress: called a second time; the masked module is "
                "pruner.bound_model, update_mask() chooses its masks anew, and another masked module needs "
                "a pruner of its own"
            )
        module = capture(self.model, self._example_inputs)
        own_masks(module)
        self.attach(module, dict(self.selection.pruning))
        if self.optimizer is not None:
            self.use_optimizer(self.optimizer)
        return module

    def attach(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Insert masks for the layers in ``settings`` into the captured ``module``."""
        self.bind(module, settings)
        accept_masks(module)
        self.choose()

    def bind(self, module: CompiledModule, settings: dict[str, PruningSettings]) -> None:
        """Work on the layers in ``settings`` of the captured ``module``; no mask is chosen yet."""
        self.bound_model = module
        self.settings = settings
        self._wrap(Wrapper(name, module.get_submodule(name), s) for name, s in settings.items())

    def configure(self, settings: dict[str, PruningSettings]) -> None:
        """Other settings for the layers it is attached to, from the next choice on."""
        self.settings = settings
        for wrapper in self.wrappers:
            wrapper.configure(settings[wrapper.name])

    def calc_mask(self, wrapper: Wrapper) -> Mapping[str, Tensor] | None:
        """The masks of one layer, ``{"weight": 0/1 tensor, "bias": ...}``; ``None`` leaves them as they are.

        Tensors have their parameter's shape or broadcast to it. ``weight_mask`` and ``bias_mask`` are
        accepted as keys too. Called without gradients, in ``compress()`` and after every optimizer step.
        """
        raise NotImplementedError(f"{type(self).__name__} overrides neither calc_mask nor choose")

    def choose(self) -> None:
        """Choose and insert the masks of all layers: by default what ``calc_mask`` gives for each."""
        asked = f"{type(self).__name__}.calc_mask"
        with torch.no_grad():
            self._set_masks({w.name: self.calc_mask(w) for w in self.wrappers}, asked)

    def update_mask(self) -> None:
        """Choose the masks anew; those chosen before no longer hold."""
        reset_masks(self._bound("update_mask"))
        self.choose()

    def _set_masks(self, masks: Mapping[str, Mapping[str, Tensor] | None], asked: str) -> None:
        """Put masks on layers by name, as the method ``asked`` gave them; ``None`` keeps what a layer has."""
        module = self._bound("calc_mask")
        full: dict[str, Tensor] = {}
        for layer, given in masks.items():
            own = module.get_submodule(layer)._parameters
            for key, mask in checked(given, own, f"{asked}({layer!r})").items():
                full[f"{layer}.{key}" if layer else key] = mask
        insert_masks(module, full, replace=True)

    def stepped(self) -> None:
        """React to a training step; by default ``calc_mask`` is asked again where a subclass has one."""
        if type(self).calc_mask is not Pruner.calc_mask:
            Pruner.choose(self)

    # -- looking, saving -----------------------------------------------------------------------------------
    def summary(self) -> Table:
        """Sparsity of every selected layer: of its weights, and of whole output and input channels."""
        return mask_table(self._bound("summary"), [w.name for w in self.wrappers])

    def show_pruned_weights(self, dim: int = 0) -> dict[str, list[int]]:
        """Print the summary; returns, by layer, the indices along ``dim`` of the weight that are kept."""
        from rich.console import Console

        Console().print(self.summary())
        kept: dict[str, list[int]] = {}
        for wrapper in self.wrappers:
            mask = wrapper.weight_mask
            if mask is not None:
                rows = mask.movedim(dim, 0).flatten(1)
                kept[wrapper.name] = (rows != 0).any(1).nonzero().flatten().tolist()
        return kept

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
        from fxcompress.export.seeds import export_model  # the export layer lies above the algorithms

        export_model(self._bound("export_model"), model_path, mask_path, onnx_path, input_shape)

    @classmethod
    def _select(
        cls, model: nn.Module, config_list: list[dict[str, Any]], pruner: str, op_types: frozenset[str]
    ) -> Selection:
        """What the config list selects, ``pruner`` (for ``op_types``) standing where an entry names none."""
        named = [_named(e, pruner) if isinstance(e, dict) else e for e in config_list]
        known = {**known_pruners(), pruner: op_types}
        entries = parse(named, pruners=known)
        refuse_options(entries, cls)
        selection = select(entries, targets_of_model(model), known, captured=False)
        keys = ", ".join(sorted(cls.schedule_keys)) or "no schedule"
        why = f"{cls.__name__} follows {keys}; leave it out, or use a pruner that has this schedule"
        refuse_schedule(selection, cls.schedule_keys, why)
        return selection


def _named(entry: dict[str, Any], pruner: str) -> dict[str, Any]:
    """The entry with the algorithm's name where it prunes and names none."""
    prunes = any(key in entry for key in AMOUNTS) and not entry.get("exclude")
    return {"pruner": pruner, **entry} if prunes else entry
