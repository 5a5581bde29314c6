"""``Compressor``: the base of pruners and quantizers; their life in a training loop.

compressor = SomeCompressor(model, config_list, optimizer)
model = compressor.compress()          # an fx.GraphModule; train it
for epoch in range(epochs):
    compressor.update_epoch(epoch)
    for batch in batches:
        ...
        optimizer.step()               # what changes by the step follows the optimizer
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fxcompress.config import Selection
from fxcompress.errors import FxcompressError
from fxcompress.graph.calls import call_of
from fxcompress.graph.module import CompiledModule
from fxcompress.training.batches import run_batches
from fxcompress.training.optimizers import innermost, trains, watch_steps
from fxcompress.training.wrapper import LayerWrapper

SHARED = frozenset({"example_inputs", "data", "loss_fn", "dependency_aware"})
"""Options of constructors that ``fxcompress.compile`` takes itself."""
LossFn = Callable[[Any, Any], Tensor]
W = TypeVar("W", bound=LayerWrapper)
ActivationCollector = Callable[[Any, Any, Any], None]


class Compressor(ABC, Generic[W]):
    """Works on the layers of a model that a config list gives to this algorithm."""

    name: ClassVar[str]
    """The name of the algorithm in a config list."""
    kind: ClassVar[str]
    """``"pruner"`` or ``"quantizer"``: the key of a config entry that names it."""
    op_types: ClassVar[frozenset[str]]
    """The operator types it works on; what ``default`` in ``op_types`` of an entry means."""

    def __init__(
        self,
        model: nn.Module,
        selection: Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        data: Iterable[Any] | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        self.selection = selection
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.loss_fn = loss_fn
        self.bound_model: CompiledModule | None = None
        self.wrappers: list[W] = []
        self.epoch = 0
        self.steps = 0
        self._example_inputs = example_inputs
        self._watching_steps: list[RemovableHandle] = []
        self._attributes: dict[str, Any] = {}
        self._collectors: dict[int, list[RemovableHandle]] = {}

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The options of its constructor beside those that all of its kind have: an entry of a config list
        may give them, ``{"name": ..., option: value}``.
        """
        found: list[str] = []
        for base in cls.__mro__:
            if "kind" in vars(base):
                break
            if "__init__" in vars(base):
                parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
                found += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in SHARED]
        return tuple(sorted(set(found)))

    @abstractmethod
    def compress(self) -> CompiledModule:
        """Capture the model, insert what the config list asks for and return the module to train."""

    def _wrap(self, wrappers: Iterable[W]) -> None:
        """Work on these layers."""
        self.wrappers = list(wrappers)
        for name, value in self._attributes.items():
            self.set_wrappers_attribute(name, value)

    # -- the training loop ---------------------------------------------------------------------------------
    def update_epoch(self, epoch: int) -> None:
        """Tell it that epoch number ``epoch`` (from 0) begins."""
        self.epoch = epoch

    def use_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Watch the steps of ``optimizer``, the one that trains the module, instead of another's.

        ``compress()`` does so with the optimizer it was made with.

        Raises:
            FxcompressError: before ``compress()``.
        """
        module, optimizer = self._bound("use_optimizer"), innermost(optimizer)
        for handle in self._watching_steps:
            handle.remove()
        if not trains(optimizer, module.parameters()):
            names = ", ".join(repr(w.name) for w in self.wrappers[:3]) + ", ..." * (len(self.wrappers) > 3)
            warnings.warn(
                f"fxcompress: the optimizer given to {type(self).__name__} holds no parameter of the "
                f"compressed module (layers {names}), so its steps do not train it; make it from the "
                f"parameters of the model given to the {self.kind}, or of what compress() returned",
                stacklevel=3,
            )
        self.optimizer = optimizer
        self._watching_steps = watch_steps(optimizer, self.about_to_step, self._after_step)

    def step(self) -> None:
        """Tell it that a training step is done, where there is no optimizer to watch."""
        self._bound("step")
        if self.optimizer is None:
            self._after_step()

    def about_to_step(self, scale: float) -> None:
        """React to gradients, ``scale`` times their size, in front of a step of the optimizer."""

    def _after_step(self) -> None:
        self.steps += 1
        self.stepped()

    def stepped(self) -> None:
        """React to a training step."""

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
        """Run the module on every batch of ``data``, so that activation collectors see them; in eval
        mode, without gradients.

        Raises:
            FxcompressError: if it was given no data, or a batch does not hold the model's inputs.
        """
        module = self._bound("run_data")
        if self.data is None:
            raise FxcompressError(
                f"{type(self).__name__}.run_data: expected data=... (an iterable of batches), got none; give "
                f"it to fxcompress.compile or to {type(self).__name__}"
            )
        run_batches(module, self.data)

    # -- saving --------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Where the algorithm stands, for a checkpoint beside the model's own ``state_dict()``.

        Plain numbers, strings and tensors: ``torch.load(..., weights_only=True)`` reads it.
        """
        return {self.kind: self.name, "epoch": self.epoch, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: call after ``compress()``.

        Raises:
            FxcompressError: if the state is of another algorithm.
        """
        self._bound("load_state_dict")
        if state.get(self.kind) != self.name:
            raise FxcompressError(
                f"load_state_dict: the checkpoint is of {self.kind} {state.get(self.kind)!r}, this is "
                f"{self.name!r}"
            )
        self.epoch, self.steps = int(state["epoch"]), int(state["steps"])

    def _bound(self, method: str) -> CompiledModule:
        if self.bound_model is None:
            raise FxcompressError(f"{type(self).__name__}.{method}: call compress() first")
        return self.bound_model
