"""``compile`` and ``speedup``: the two calls most users make."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxcompress.config import (
    known_pruners,
    known_quantizers,
    parse,
    refuse_schedule,
    select,
    targets_of_graph,
    targets_of_model,
)
from fxcompress.errors import ConfigError, SpeedupError
from fxcompress.export.masks import check_masks, is_activation, load_masks
from fxcompress.graph.calls import Reference
from fxcompress.graph.capture import capture
from fxcompress.graph.inputs import as_inputs
from fxcompress.graph.module import CompiledModule, erase_dead
from fxcompress.passes.bake_masks import bake_masks
from fxcompress.passes.compact import compact, compacted_layers
from fxcompress.passes.insert_masks import accept_masks, insert_masks, mask_layer, own_masks
from fxcompress.passes.propagate import Analysis
from fxcompress.passes.shrink import Slices, after, shrink
from fxcompress.passes.verify import TOLERANCE, tolerance
from fxcompress.passes.verify import verify as verify_pair
from fxcompress.pruning import PRUNERS
from fxcompress.pruning.masks import mask_buffers, qualified
from fxcompress.quantization import QUANTIZERS
from fxcompress.report import make_report
from fxcompress.rules.axes import Bools
from fxcompress.training.named import named_algorithms


def compile(
    model: nn.Module,
    config_list: list[dict[str, Any]],
    example_inputs: Any = None,
    *,
    data: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    dependency_aware: bool = True,
) -> CompiledModule:
    """Capture ``model`` and insert what ``config_list`` asks for.

    Args:
        model: any ``nn.Module``. Its class, code and mode are left alone; parameters are shared, so an
            optimizer that holds them trains the compiled model too.
        config_list: entries applied in order, later ones winning key by key, e.g.
            ``[{"sparsity": 0.5, "op_types": ["Conv2d"]}, {"exclude": True, "op_names": ["stem"]}]``. An entry
            may give options to the algorithm it names: ``{"quantizer": {"name": "ptq", "observer": "mse"}}``.
        example_inputs: a tensor, a tuple of positional inputs or a mapping of keyword inputs (a dict, or what
            a tokenizer returns); found from the first layers when omitted (``.notes`` says which).
        data: an iterable of batches for algorithms that measure activations or gradients (``"taylor"``,
            ``"apoz"``, ...). A batch is a tensor, a dict of the model's keyword inputs (others are left out),
            or a tuple that begins with the model's inputs.
        loss_fn: ``loss_fn(output, batch)``, a scalar, for algorithms that need gradients.
        dependency_aware: choose coupled channels together, so that ``speedup`` can remove everything masked.
            ``False`` masks each layer on its own.

    Returns:
        An ``fx.GraphModule`` that trains, evaluates and saves like the model. Masks are buffers
        (``<layer>.weight_mask``) multiplied in by nodes of its graph; what is quantized is rounded by
        fake-quantize nodes, whose ranges are observed on ``data`` and move in training.

    Raises:
        ConfigError: before any work, naming the entry, the key, what was expected and what was given.
        CaptureError: naming the line of the model that cannot be captured.
    """
    if isinstance(model, nn.Module) and not isinstance(dependency_aware, bool):
        raise ConfigError(f"dependency_aware: expected True or False, got {dependency_aware!r}")
    known = {**known_pruners(), **known_quantizers()}
    selection = select(parse(config_list), targets_of_model(model), known, captured=False)
    refuse_schedule(
        selection,
        (),
        "compile() has no training loop, so no schedule: give 'sparsity' alone, or use a pruner that has "
        "one, such as fxcompress.pruning.AGPPruner",
    )
    data = list(data) if isinstance(data, Iterator) else data  # several algorithms may go through it
    options: dict[str, Any] = {"data": data, "loss_fn": loss_fn, "dependency_aware": dependency_aware}
    pruners = named_algorithms(PRUNERS, model, selection, selection.pruning, **options)
    named_algorithms(QUANTIZERS, model, selection, selection.quantization, data=data)  # checks options
    module = capture(model, example_inputs)
    own_masks(module)
    for pruner, pruned in pruners:
        pruner.attach(module, pruned)
    if selection.quantization or selection.deferred:
        selection = select(parse(config_list), targets_of_graph(module), known)
        chosen = selection.quantization
        for quantizer, rounded in named_algorithms(QUANTIZERS, model, selection, chosen, data=data):
            quantizer.attach(module, rounded)
    return module


def speedup(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    masks: Mapping[str, Mapping[str, Tensor]] | str | os.PathLike[str] | None = None,
    verify: bool = True,
    round_to: int | None = None,
) -> CompiledModule:
    """Remove masked channels physically; the result computes what the masked model computes.

    Args:
        model: a compiled model, or any model together with ``masks``.
        example_inputs: as for ``compile``; those of the compiled model by default.
        masks: ``{layer: {"weight": mask, "bias": mask}}`` or a mask file, applied on top of the model's own;
            ``"input"`` and ``"output"`` stand for a layer's activations (``[channels]``, or a mask that
            broadcasts to them).
        verify: lint the small graph, check what each node yields, and compare both models in float64 on the
            example inputs.
        round_to: keep a multiple of this many channels where channels are removed.

    Returns:
        A smaller ``CompiledModule`` with its own parameters and a ``.report``.

    Raises:
        SpeedupError: if masks do not fit the model, or verification finds a difference.
    """
    if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
        raise SpeedupError(f"round_to: expected a positive number of channels, got {round_to!r}")
    masked = model if isinstance(model, CompiledModule) else capture(model, example_inputs)
    inputs = masked.example_inputs if example_inputs is None else as_inputs(example_inputs)
    if masks is not None:
        masked = _with_masks(masked, masks)
    with _uncollected():
        small = bake_masks(masked, compiled=False)
        small.example_inputs = inputs
        folded, again = False, True
        named = masked.named_parameters(remove_duplicate=False)
        origin: dict[str, Slices] = {name: (None,) * parameter.dim() for name, parameter in named}
        stayed: list[_Stayed] = []
        unruled: list[tuple[str, str]] | None = None
        while again:
            erase_dead(small.graph)
            found = Analysis.of(small, round_to)
            if unruled is None:  # in later rounds the axes are no longer those of the masked model
                stayed, unruled = _stayed(masked, found), _without_rule(found)
            now = compact(small, found, round_to=round_to)
            done = shrink(small, now.flow, now.values, now.kept)
            folded, again = folded or done.folded, done.again or now is not found
            origin = {name: after(origin[name], s) for name, s in done.slices.items() if name in origin}
        left = dict(small.named_parameters(remove_duplicate=False))
        small.origin = {name: slices for name, slices in origin.items() if name in left}
        kept = [*((row.layer, row.told(small)) for row in stayed), *(unruled or ())]
        small.report = make_report(masked, small, inputs, kept, masked.notes)
    if verify:
        allowed = tolerance(masked) if folded else TOLERANCE
        passes = ("propagate", "shrink")
        verify_pair(masked, small, inputs, tolerance=allowed, passes=passes)
    return small.train(masked.training)


def apply_masks(
    model: nn.Module,
    masks: Mapping[str, Mapping[str, Tensor]] | str | os.PathLike[str],
    example_inputs: Any = None,
) -> CompiledModule:
    """Mask ``model`` with masks that exist already, to train it on, measure it, or speed it up later.

        masked = fxcompress.apply_masks(model, "masks.safetensors", example_inputs)

    Args:
        model: any model with the layers that ``masks`` names; left as it is, parameters are shared.
        masks: as for ``speedup``; a compiled model's own masks hold besides them.
        example_inputs: as for ``compile``; those of a compiled model by default.

    Returns:
        A module that trains, evaluates and saves like one of ``compile``.

    Raises:
        SpeedupError: listing every mask that does not fit the model.
        PassError: if a mask of an activation does not fit.
        CaptureError: naming the line of the model that cannot be captured.
    """
    masked = capture(model, example_inputs)
    if isinstance(model, CompiledModule) and example_inputs is not None:
        masked.example_inputs = as_inputs(example_inputs)
    masked = _with_masks(masked, masks)
    accept_masks(masked)
    return masked


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector: the many small objects of an analysis live until it is done, and to look
    through them (and all of torch) again and again takes as long as the analysis.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _with_masks(
    module: CompiledModule, masks: Mapping[str, Mapping[str, Tensor]] | str | os.PathLike[str]
) -> CompiledModule:
    """A fork of ``module`` under these masks besides its own."""
    given = load_masks(masks) if isinstance(masks, (str, os.PathLike)) else masks
    checked = check_masks(given, module)
    twin = module.fork()
    own_masks(twin)
    for layer, entries in checked.items():
        owner = module.get_submodule(layer)
        for side in [name for name in entries if is_activation(owner, name)]:
            mask_layer(twin, layer, side, entries.pop(side))
    insert_masks(twin, qualified(checked))
    return twin


@dataclass(frozen=True)
class _Stayed:
    """Whole slices of a layer's weight that are masked and were not removed."""

    layer: str
    dim: int
    width: int
    """How many slices of the weight stayed at all."""
    still: int
    masked: int
    why: str

    def told(self, small: CompiledModule) -> str:
        """The reason; and how many the layer itself lost after all, its tensors keeping them for others."""
        lost = self.width - _width(small, self.layer, self.dim)
        compacted = f"; compacted: the layer itself lost {min(lost, self.still)}"
        told = f"{self.still} of {self.masked} masked channels stay: {self.why}"
        return told + compacted if lost and self.layer in compacted_layers(small.graph) else told


def _width(module: CompiledModule, layer: str, dim: int) -> int:
    weight = getattr(module.get_submodule(layer), "weight", None)
    return weight.shape[dim] if isinstance(weight, Tensor) else 0


def _stayed(masked: CompiledModule, found: Analysis) -> list[_Stayed]:
    """Masked whole slices that were not removed, by layer, with the reason."""
    rows: list[_Stayed] = []
    flow, kept = found.flow, found.kept
    for layer, parameter, mask in mask_buffers(masked):
        name = Reference(f"{layer}.{parameter}" if layer else parameter)
        axes = flow.map.of.get(flow.canonical(name)) if parameter == "weight" else None
        for dim, axis in enumerate((axes or ())[:2]):
            here = kept.get(id(axis.find()), np.ones(axis.size, dtype=np.bool_))
            still = _empty_slices(mask, dim, here)
            if still:
                count = len(_empty_slices(mask, dim, np.ones(axis.size, dtype=np.bool_)))
                obstacle = axis.find().frozen
                why = (
                    "other layers need these channels"
                    if obstacle is None
                    else f"{obstacle.reason} ({obstacle.node})"
                )
                rows.append(_Stayed(layer, dim, int(here.sum()), len(still), count, why))
    return rows


def _without_rule(found: Analysis) -> list[tuple[str, str]]:
    """Operators without a rule, at the first node that calls them."""
    return [
        (nodes[0], f"no rule for operator {op!r} ({len(nodes)} calls): channels around it stay")
        for op, nodes in found.flow.map.unruled.items()
    ]


def _empty_slices(mask: Tensor, dim: int, among: Bools) -> list[int]:
    """The slices (of those in ``among``) in which all of ``mask`` is zero."""
    values = mask.detach().cpu()
    rows = np.moveaxis((values.float() if values.dtype == torch.bfloat16 else values).numpy(), dim, 0)
    found = among
    for share in (0.0, 0.5, 1.0):  # few are worth a look at all of their entries
        probe: list[Any] = [int(share * (size - 1)) for size in rows.shape[1:]]
        found = found & (rows[(slice(None), *probe)] == 0)
        if not found.any():
            return []
    doubtful = np.flatnonzero(found)
    empty: list[int] = doubtful[~rows[doubtful].reshape(len(doubtful), -1).any(1)].tolist()
    return empty
