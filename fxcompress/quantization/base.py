"""``Quantizer``: the base of all quantizers, and their life in a training loop.

    quantizer = QAT_Quantizer(model, [{"quant_bits": 8, "op_types": ["Conv2d", "Linear"]}], optimizer)
    model = quantizer.compress()           # an fx.GraphModule with fake-quantize nodes; train it
    ...                                    # the training loop: ranges move, gradients pass straight through
    calibration = quantizer.export_model("weights.pt", "calibration.json", "model.onnx", (1, 3, 224, 224))

A BatchNorm behind a selected convolution is absorbed into it with its running statistics, which no longer
move (``passes.absorb_batch_norm``): what is rounded in training is the weight that is deployed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxcompress.config import (
    Selection,
    known_pruners,
    known_quantizers,
    parse,
    select,
    targets_of_graph,
    targets_of_model,
)
from fxcompress.config.registry import QUANTIZABLE
from fxcompress.config.schema import QUANT_KEYS
from fxcompress.config.settings import QuantSettings
from fxcompress.errors import ConfigError, FxcompressError, did_you_mean
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import FixedObserver
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from fxcompress.passes.decompose_activations import decompose_activations
from fxcompress.passes.decompose_attention import decompose_attention
from fxcompress.passes.insert_fake_quant import Rounded, insert_fake_quant, quantizers
from fxcompress.passes.insert_masks import own_masks
from fxcompress.passes.round_biases import round_biases
from fxcompress.quantization import calibration
from fxcompress.quantization.custom import ByMethod
from fxcompress.quantization.grad import QuantGrad, QuantType
from fxcompress.quantization.placement import Placement, Spot, gated, tensors_of
from fxcompress.quantization.wrapper import Wrapper
from fxcompress.training.batches import run_batches
from fxcompress.training.compressor import Compressor
from fxcompress.training.named import refuse_options


class Quantizer(Compressor[Wrapper]):
    """Rounds the tensors of the layers that the config list gives to this algorithm.

    A subclass overrides ``fake_quantizer``, which makes the module that rounds one tensor; or, as in the
    seeds' API, ``quantize_weight``, ``quantize_input`` and ``quantize_output``, which round one.
    """

    kind = "quantizer"
    op_types: ClassVar[frozenset[str]] = QUANTIZABLE
    default_types: ClassVar[tuple[str, ...] | None] = None
    """The ``quant_types`` of entries that give none; ``None``: what integer kernels need."""
    only_types: ClassVar[tuple[str, ...]] = ("weight", "input", "output")
    """The ``quant_types`` it can round."""
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Further keys (``quant_bits``, ...) of entries that give none, where they are not the usual."""
    moves: ClassVar[bool] = True
    """Whether a rounding may stand in front of operators that pass values on, with the range there."""

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]] | Selection,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        example_inputs: Any = None,
        data: Iterable[Any] | None = None,
    ) -> None:
        """Validate the config list (nothing is traced yet).

        Args:
            model: the model to quantize; left as it is, its parameters are shared with the module.
            config_list: see ``fxcompress.compile``; entries without ``quantizer`` mean this algorithm.
            optimizer: the optimizer that trains the model; its steps are counted for ``quant_start_step``.
            example_inputs: see ``fxcompress.compile``.
            data: batches to calibrate ranges on, see ``fxcompress.compile``.

        Raises:
            ConfigError: naming the entry, the key, what was expected and what was given.
        """
        self._config_list = None if isinstance(config_list, Selection) else config_list
        if not isinstance(config_list, Selection):
            config_list = self._select(model, config_list)
        super().__init__(model, config_list, optimizer, example_inputs=example_inputs, data=data)
        self.settings: dict[str, QuantSettings] = {}
        self.quant_grad: type[QuantGrad] = QuantGrad
        self._nodes: dict[str, list[str]] = {}
        self._starts: dict[str, int] = {}

    def compress(self) -> CompiledModule:
        """Capture the model, insert the fake-quantize nodes, calibrate on ``data`` if there is any.

        Raises:
            FxcompressError: if it was called before.
        """
        if self.bound_model is not None:
            raise FxcompressError(
                f"{type(self).__name__}.compress: called a second time; the quantized module is "
                "quantizer.bound_model, and another one needs a quantizer of its own"
            )
        module = capture(self.model, self._example_inputs)
        own_masks(module)
        if self._config_list is not None:
            self.selection = self._select(self.model, self._config_list, module)
        self.attach(module, dict(self.selection.quantization))
        if self.optimizer is not None:
            self.use_optimizer(self.optimizer)
        return module

    def attach(self, module: CompiledModule, settings: dict[str, QuantSettings]) -> None:
        """Insert fake-quantize nodes for ``settings`` into the captured ``module``."""
        self.bound_model = module
        settings = {name: self._completed(s) for name, s in settings.items()}
        self._refuse_types(settings)
        rounded = [n for n, s in settings.items() if {"input", "output"} & set(s.quant_types)]
        absorb_batch_norm(module, rounded)
        self.prepare(module, settings)
        for name, products in decompose_attention(module, rounded).items():
            settings |= dict.fromkeys(products, settings.pop(name))
        exactly = self.default_types is not None or all("quant_types" in s.sources for s in settings.values())
        if not exactly:
            decompose_activations(module, gated(module, settings))
        barred = [n for n, why in self.selection.unselected.items() if why.startswith("excluded")]
        placement = Placement(module, settings, barred=barred, exactly=exactly, moves=self.moves)
        self.settings = settings | placement.joined
        self._wrap(Wrapper(n, _module_of(module, n), s) for n, s in self.settings.items())
        by_name = {wrapper.name: wrapper for wrapper in self.wrappers}
        places: dict[str, tuple[Rounded, nn.Module]] = {}
        for name, spot in placement.spots(quantizers(module)).items():
            quantizer = self.fake_quantizer(by_name[spot.layer], spot.quant_type, grid_of(spot))
            if spot.bounds is not None and type(quantizer) is FakeQuantize:
                quantizer = FakeQuantize(quantizer.grid, FixedObserver(*spot.bounds))
            places[name] = (spot.rounded, quantizer)
            self._starts[name] = spot.settings.quant_start_step
        insert_fake_quant(module, places)
        module.notes += tuple(
            f"{name}: {' and '.join(self.settings[name].quant_types)} selected, but nothing is rounded: "
            "quantizers round weights of convolutions and linear layers, inputs and outputs of floats"
            for name in placement.idle
        )
        self._nodes = {layer: [node.name for node in nodes] for layer, nodes in placement.nodes.items()}
        self.stepped()
        if self.data is not None:
            self.calibrate(self.data)
        self.finish(module)
        round_biases(module, [node for nodes in placement.nodes.values() for node in nodes])

    # -- what an algorithm overrides -----------------------------------------------------------------------
    def prepare(self, module: CompiledModule, settings: Mapping[str, QuantSettings]) -> None:
        """Change the captured module while everything is float, before places to round are chosen."""

    def finish(self, module: CompiledModule) -> None:
        """Work on the module once its fake-quantize nodes are there, and calibrated if there is data."""

    def fake_quantizer(self, wrapper: Wrapper, quant_type: str, grid: Grid) -> nn.Module:
        """The module that rounds a tensor of a layer.

        Args:
            wrapper: the layer.
            quant_type: ``"weight"``, ``"input"`` or ``"output"``.
            grid: as the config asks for it.
        """
        return ByMethod(self, wrapper, QuantType(quant_type))

    def quantize_weight(self, weight: Tensor, **kwargs: Any) -> Tensor:
        """The weight rounded; ``wrapper``, ``config``, ``op``, ``op_type``, ``op_name`` say of what layer."""
        return weight

    def quantize_input(self, *inputs: Tensor, **kwargs: Any) -> Tensor:
        """An input rounded; see ``quantize_weight``."""
        return inputs[0]

    def quantize_output(self, output: Tensor, **kwargs: Any) -> Tensor:
        """An output (behind a ReLU that follows the layer) rounded; see ``quantize_weight``."""
        return output

    # -- ranges --------------------------------------------------------------------------------------------
    @property
    def fake_quantizers(self) -> dict[str, FakeQuantize]:
        """The modules that round, by name."""
        found = quantizers(self._bound("fake_quantizers"))
        return {name: q for name, q in found.items() if isinstance(q, FakeQuantize)}

    def calibrate(self, data: Iterable[Any]) -> None:
        """Observe ranges on batches of ``data`` in eval mode, rounding nothing meanwhile."""
        module = self._bound("calibrate")
        states = {q: (q.observing, q.calibrating, q.quantizing) for q in self.fake_quantizers.values()}
        for quantizer in states:
            quantizer.observing, quantizer.calibrating, quantizer.quantizing = True, True, False
        try:
            run_batches(module, data)
        finally:
            for quantizer, state in states.items():
                quantizer.observing, quantizer.calibrating, quantizer.quantizing = state
        for quantizer in states:
            if quantizer.observer.costly:
                quantizer.settle()

    def stepped(self) -> None:
        """Round from ``quant_start_step`` on."""
        for name, quantizer in quantizers(self._bound("stepped")).items():
            if name in self._starts:
                quantizer.quantizing = self.steps >= self._starts[name]  # type: ignore[assignment]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base's; rounding begins at once if it had begun."""
        super().load_state_dict(state)
        self.stepped()

    def quantizers_of(self, layer: str) -> dict[str, FakeQuantize]:
        """What rounds the tensors of a layer: ``weight``, ``input`` (further ones ``input_1``, ...) and
        ``output``; several layers may read one rounded tensor. What has no grid (DoReFa, BNN, methods of
        one's own) is left out.
        """
        module, modules = self._bound("quantizers_of"), self.fake_quantizers
        nodes = {node.name: node for node in module.graph.nodes}
        found: dict[str, str] = {}
        for name in self._nodes.get(layer, ()):
            found = {**tensors_of(nodes[name]), **found}
        return {tensor: modules[name] for tensor, name in found.items() if name in modules}

    # -- looking, saving -----------------------------------------------------------------------------------
    def calibration_config(self) -> dict[str, dict[str, Any]]:
        """Bits, scale, zero point and tracked range of every tensor of every layer (``calibration.py``)."""
        return {w.name: calibration.describe(self.quantizers_of(w.name)) for w in self.wrappers}

    def load_calibration_config(self, config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
        """Take over ranges, scales and zero points: a ``calibration_config``, or the file of one.

        Raises:
            ConfigError: naming the layer whose entry does not fit, or that the model does not have.
        """
        given = calibration.read(config)
        layers = {wrapper.name for wrapper in self.wrappers}
        for layer, entry in given.items():
            if layer not in layers:
                hint = did_you_mean(layer, sorted(layers)) or "; quantize it in the config list"
                raise ConfigError(f"calibration_config[{layer!r}]: expected a quantized layer{hint}")
            calibration.restore(layer, self.quantizers_of(layer), entry)

    def export_model(
        self,
        model_path: str | os.PathLike[str],
        calibration_path: str | os.PathLike[str] | None = None,
        onnx_path: str | os.PathLike[str] | None = None,
        input_shape: tuple[int, ...] | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Write the weights, and on request the calibration and an integer ONNX model.

        Args:
            model_path: state dict under the original model's keys, not rounded.
            calibration_path: ``calibration_config()`` as JSON.
            onnx_path: the quantized network as ONNX; see ``fxcompress.export_onnx``.
            input_shape: shape of the input for ``onnx_path``; the captured example input by default.
            device: taken for the seeds' sake; the model is exported from where it is.

        Returns:
            ``calibration_config()``.
        """
        from fxcompress.export.seeds import export_quantized  # the export layer lies above the algorithms

        config = self.calibration_config()
        module = self._bound("export_model")
        export_quantized(module, config, model_path, calibration_path, onnx_path, input_shape)
        return config

    @classmethod
    def _select(
        cls, model: nn.Module, config_list: list[dict[str, Any]], module: CompiledModule | None = None
    ) -> Selection:
        """What the config list selects, this quantizer standing where an entry names none."""
        named = [_named(e, cls.name) if isinstance(e, dict) else e for e in config_list]
        targets = targets_of_model(model) if module is None else targets_of_graph(module)
        names = {**known_quantizers(), cls.name: cls.op_types}
        known = {**known_pruners(), **names}
        entries = parse(named, quantizers=names)
        refuse_options(entries, cls)
        selection = select(entries, targets, known, captured=module is not None)
        cls._refuse_types({n: s for n, s in selection.quantization.items() if s.quantizer == cls.name})
        return selection

    @classmethod
    def own_defaults(cls) -> dict[str, Any]:
        """What it takes for granted where no entry says otherwise, by field of ``QuantSettings``."""
        types = {} if cls.default_types is None else {"quant_types": cls.default_types}
        return {**types, **cls.defaults}

    def _completed(self, settings: QuantSettings) -> QuantSettings:
        """The settings with its own defaults, which those of an algorithm that is not registered lack."""
        own = self.own_defaults()
        return replace(settings, **{key: own[key] for key in own if key not in settings.sources})

    @classmethod
    def _refuse_types(cls, chosen: Mapping[str, QuantSettings]) -> None:
        for layer, settings in chosen.items():
            wrong = [t for t in settings.quant_types if t not in cls.only_types]
            if wrong and "quant_types" in settings.sources:
                raise ConfigError(
                    f"config_list[{settings.sources['quant_types']}]: quant_types: expected some of "
                    f"{', '.join(cls.only_types)} for quantizer {cls.name!r}, got {wrong[0]!r} (layer "
                    f"{layer!r}); leave it out"
                )


def grid_of(spot: Spot) -> Grid:
    """The grid that the settings ask for a tensor."""
    settings, kind = spot.settings, spot.quant_type
    scheme = settings.quant_scheme[kind]
    axis = (spot.axis if kind == "weight" else 1) if scheme.startswith("per_channel") else None
    signed, symmetric = settings.quant_dtype[kind] == "int", scheme.endswith("symmetric")
    return Grid(
        settings.quant_bits[kind], signed, symmetric, axis, settings.quant_scale[kind] == "power_of_two"
    )


def _module_of(module: CompiledModule, name: str) -> nn.Module:
    """The module of that name; an empty one for a functional operator."""
    found = dict(module.named_modules(remove_duplicate=False)).get(name)
    return nn.Module() if found is None else found


def _named(entry: dict[str, Any], quantizer: str) -> dict[str, Any]:
    """The entry with the algorithm's name where it quantizes and names none."""
    quantizes = any(key in entry for key in QUANT_KEYS) and not entry.get("exclude")
    return {"quantizer": quantizer, **entry} if quantizes else entry
