"""Masks for whole units: what dependency-aware pruning puts on every parameter a pruned channel passes
through.

Pruning unit ``u`` masks the filters that make it, and the scale and offset of norms and depthwise
convolutions it passes through, so its activation is zero in train and eval mode alike; where something still
turns it into a non-zero value (a sigmoid, say) before another layer reads it, that layer's input is masked,
and norms over channels take their statistics over the kept ones. Training under these masks is training the
small model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxcompress.graph.calls import Reference, call_of, operand
from fxcompress.graph.module import CompiledModule, get_tensor
from fxcompress.passes.axes import analyze_axes
from fxcompress.passes.insert_masks import insert_masks, mask_activation, restrict_statistics
from fxcompress.passes.propagate import propagate_constants
from fxcompress.pruning.units import Units
from fxcompress.rules.axes import Axis, Bools, Contraction
from fxcompress.rules.flow import Flow


def parameter_masks(module: CompiledModule, flow: Flow, units: Units, pruned: Bools) -> dict[str, Tensor]:
    """Masks (of the parameters' shapes) over everything that makes or passes the pruned units.

    ``pruned`` is ``bool[units]``. Dimensions along which a weight *reads* channels are left alone.
    """
    masks: dict[str, Tensor] = {}
    for ref, axes in flow.map.of.items():
        if not isinstance(ref, Reference) or not isinstance(get_tensor(module, ref), nn.Parameter):
            continue
        for dim, axis in enumerate(axes):
            gone = _gone(units, axis, pruned)
            if gone is None or (ref, dim) in flow.map.read_dims:
                continue
            parameter = get_tensor(module, ref)
            mask = masks.setdefault(str(ref), torch.ones_like(parameter.detach()))
            mask.index_fill_(dim, torch.from_numpy(np.flatnonzero(gone)).to(mask.device), 0)
    return masks


def _gone(units: Units, axis: Axis, pruned: Bools) -> Bools | None:
    labels = units.labels.get(id(axis.find()))
    if labels is None:
        return None
    gone = pruned[labels]
    return gone if gone.any() else None


def mask_units(module: CompiledModule, flow: Flow, units: Units, pruned: Bools) -> None:
    """Insert all masks for the pruned units into ``module``."""
    _restrict_norms(module, flow, units, pruned)
    insert_masks(module, parameter_masks(module, flow, units, pruned))
    _mask_readers(module, flow, units, pruned)
    module.graph.lint()
    module.recompile()


def _restrict_norms(module: CompiledModule, flow: Flow, units: Units, pruned: Bools) -> None:
    for node, dims in flow.map.restricted.items():
        call = call_of(node)
        axes = () if call is None else flow.axes(operand(call))
        gone = [_gone(units, axes[d], pruned) for d in dims]
        if all(g is None for g in gone):
            continue
        mask = torch.ones([1 if rows is None else len(rows) for rows in gone])
        for offset, rows in enumerate(gone):
            if rows is not None:
                mask.index_fill_(offset, torch.from_numpy(np.flatnonzero(rows)), 0)
        restrict_statistics(module, node, mask)


def _mask_readers(module: CompiledModule, flow: Flow, units: Units, pruned: Bools) -> None:
    """Mask what layers read wherever a pruned unit is not known to be zero there."""
    values = propagate_constants(module, analyze_axes(module))
    done: dict[tuple[fx.Node, int], fx.Node | None] = {}
    for contraction in flow.map.contractions:
        user = contraction.call.node
        gone = _gone(units, contraction.inner, pruned)
        if gone is None:
            continue
        for source, dim in _activations(flow, contraction):
            if (source, dim) in done:
                product = done[source, dim]
                if product is not None:
                    user.replace_input_with(source, product)
                continue
            zero = values.zero(source, dim)
            covered = zero is not None and bool(zero.numpy()[gone].all())
            mask = torch.from_numpy(~gone).view(-1, *[1] * (len(flow.axes(source)) - 1 - dim))
            done[source, dim] = None if covered else mask_activation(module, source, user, mask)


def _activations(flow: Flow, contraction: Contraction) -> list[tuple[fx.Node, int]]:
    """What a contraction reads that is no parameter, and the dimension it sums over. That of a recurrent
    layer is stated over its weights: it reads its input, and its initial states.
    """
    if isinstance(contraction.source, fx.Node):
        return [(contraction.source, contraction.dim)]
    inner = contraction.inner.find()
    operands = [ref for _, ref in contraction.call.refs() if isinstance(ref, fx.Node) and ref in flow.map.of]
    return [(ref, d) for ref in operands for d, axis in enumerate(flow.axes(ref)) if axis.find() is inner]
