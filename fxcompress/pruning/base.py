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
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fxcompress.config import Selection, known_pruners, parse, refuse_schedule, select, targets_of_model
from fxcompress.config.registry import PRUNABLE
from fxcompress.config.settings import AMOUNTS, PruningSettings
from fxcompress.errors import FxcompressError
from fxcompress.graph.calls import call_of
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.passes.insert_masks import accept_masks, insert_masks, own_masks, reset_masks
from fxcompress.pruning.batches import inputs_of
from fxcompress.pruning.masks import checked
from fxcompress.pruning.optimizers import innermost, trains, watch_steps
from fxcompress.pruning.summary import mask_table
from fxcompress.pruning.wrapper import Wrapper

LossFn = Callable[[Any, Any], Tensor]
ActivationCollector = Callable[[Wrapper, Any, Any], None]


class Pruner:
    """Chooses masks for the layers that the config list gives to this algorithm.

    A subclass overrides ``calc_mask``, which is asked for every selected layer when the masks are first
    inserted and after every step of the optimizer; or ``choose``, which masks all layers at once.
    """

    name: ClassVar[str]
    """The name of the algorithm in a config list."""
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
        self.selection = (
            config_list
            if isinstance(config_list, Selection)
            else self._select(model, config_list, self.name, self.op_types)
        )
        self.model = model
        self.optimizer = optimizer
        self.dependency_aware = dependency_aware
        self.data = data
        self.loss_fn = loss_fn
        self.bound_model: CompiledModule | None = None
        self.settings: dict[str, PruningSettings] = {}
        self.wrappers: list[Wrapper] = []
        self.epoch = 0
        self.steps = 0
        self._example_inputs = example_inputs
        self._watching_steps: list[RemovableHandle] = []
        self._attributes: dict[str, Any] = {}
        self._collectors: dict[int, list[RemovableHandle]] = {}

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
        self.wrappers = [Wrapper(name, module.get_submodule(name), s) for name, s in settings.items()]
        for name, value in self._attributes.items():
            self.set_wrappers_attribute(name, value)

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

    # -- the training loop ---------------------------------------------------------------------------------
    def update_epoch(self, epoch: int) -> None:
        """Tell the pruner that epoch number ``epoch`` (from 0) begins."""
        self.epoch = epoch

    def use_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch the steps of ``optimizer``, the one that trains the masked module, instead of another's.

        ``compress()`` does so with the optimizer the pruner was made with.

        Raises:
            FxcompressError: before ``compress()``.
        """
        module, optimizer = self._bound("use_optimizer"), innermost(optimizer)
        for handle in self._watching_steps:
            handle.remove()
        if not trains(optimizer, module.parameters()):
            names = ", ".join(repr(w.name) for w in self.wrappers[:3]) + ", ..." * (len(self.wrappers) > 3)
            warnings.warn(
                f"fxcompress: the optimizer given to {type(self).__name__} holds no parameter of the masked "
                f"module (layers {names}), so its steps do not train it; make it from the parameters of the "
                "model given to the pruner, or of what compress() returned",
                stacklevel=3,
            )
        self.optimizer = optimizer
        self._watching_steps = watch_steps(optimizer, self.about_to_step, self._after_step)

    def step(self) -> None:
        """Tell the pruner that a training step is done, where it has no optimizer to watch."""
        self._bound("step")
        if self.optimizer is None:
            self._after_step()

    def about_to_step(self, scale: float) -> None:
        """React to gradients, ``scale`` times their size, in front of a step of the optimizer."""

    def _after_step(self) -> None:
        self.steps += 1
        self.stepped()

    def stepped(self) -> None:
        """React to a training step; by default ``calc_mask`` is asked again where a subclass has one."""
        if type(self).calc_mask is not Pruner.calc_mask:
            Pruner.choose(self)

    # -- what an algorithm of one's own needs --------------------------------------------------------------
    def set_wrappers_attribute(self, name: str, value: Any) -> None:
        """Set an attribute on every wrapper, also on those that ``compress()`` is yet to make.

        Of a tensor each gets a copy of its own.
        """
        self._attributes[name] = value
        for wrapper in self.wrappers:
            setattr(wrapper, name, value.detach().clone() if isinstance(value, Tensor) else value)

    def add_activation_collector(self, collector: ActivationCollector) -> int:
        """Call ``collector(wrapper, inputs, output)`` whenever a selected layer runs.

        Returns:
            An id for ``remove_activation_collector``.

        Raises:
            FxcompressError: before ``compress()``, or if the graph calls a selected layer nowhere.
        """
        module = self._bound("add_activation_collector")
        called = {call.module for call in map(call_of, module.graph.nodes) if call is not None}
        silent = [w.name for w in self.wrappers if w.name not in called]
        if silent:
            raise FxcompressError(
                f"add_activation_collector: the model reads the weight of {silent[0]!r} without calling the "
                "layer, so it has no activations to collect; exclude it in the config list"
            )
        handles = [
            w.module.register_forward_hook(lambda _, inputs, output, w=w: collector(w, inputs, output))
            for w in self.wrappers
        ]
        identity = max(self._collectors, default=-1) + 1
        self._collectors[identity] = handles
        return identity

    def remove_activation_collector(self, identity: int) -> None:
        """Stop calling the collector with that id.

        Raises:
            FxcompressError: if there is none.
        """
        if identity not in self._collectors:
            known = ", ".join(map(str, self._collectors)) or "none"
            raise FxcompressError(f"activation collector {identity!r}: no such id; in use: {known}")
        for handle in self._collectors.pop(identity):
            handle.remove()

    def run_data(self) -> None:
        """Run the masked module on every batch of ``data``, so that activation collectors see them; in eval
        mode, without gradients.

        Raises:
            FxcompressError: if the pruner was given no data, or a batch does not hold the model's inputs.
        """
        module = self._bound("run_data")
        if self.data is None:
            raise FxcompressError(
                f"{type(self).__name__}.run_data: expected data=... (an iterable of batches), got none; give "
                f"it to fxcompress.compile or to {type(self).__name__}"
            )
        with eval_mode(module), torch.no_grad():
            for batch in self.data:
                args, kwargs = inputs_of(module, batch)
                module(*args, **kwargs)

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

    def state_dict(self) -> dict[str, Any]:
        """Where the algorithm stands, for a checkpoint beside the model's own ``state_dict()``.

        Plain numbers, strings and tensors: ``torch.load(..., weights_only=True)`` reads it.
        """
        return {"pruner": self.name, "epoch": self.epoch, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: call after ``compress()``.

        Raises:
            FxcompressError: if the state is of another algorithm.
        """
        self._bound("load_state_dict")
        if state.get("pruner") != self.name:
            raise FxcompressError(
                f"load_state_dict: the checkpoint is of pruner {state.get('pruner')!r}, this is {self.name!r}"
            )
        self.epoch, self.steps = int(state["epoch"]), int(state["steps"])

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

    def _bound(self, method: str) -> CompiledModule:
        if self.bound_model is None:
            raise FxcompressError(f"{type(self).__name__}.{method}: call compress() first")
        return self.bound_model

    @classmethod
    def _select(
        cls, model: nn.Module, config_list: list[dict[str, Any]], pruner: str, op_types: frozenset[str]
    ) -> Selection:
        """What the config list selects, ``pruner`` (for ``op_types``) standing where an entry names none."""
        named = [_named(e, pruner) if isinstance(e, dict) else e for e in config_list]
        known = {**known_pruners(), pruner: op_types}
        selection = select(parse(named, pruners=known), targets_of_model(model), known, captured=False)
        keys = ", ".join(sorted(cls.schedule_keys)) or "no schedule"
        why = f"{cls.__name__} follows {keys}; leave it out, or use a pruner that has this schedule"
        refuse_schedule(selection, cls.schedule_keys, why)
        return selection


def _named(entry: dict[str, Any], pruner: str) -> dict[str, Any]:
    """The entry with the algorithm's name where it prunes and names none."""
    prunes = any(key in entry for key in AMOUNTS) and not entry.get("exclude")
    return {"pruner": pruner, **entry} if prunes else entry
