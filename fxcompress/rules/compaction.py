"""Channels left out in front of one layer, or put back behind it: ``gather_channels``, ``scatter_channels``.

``passes.compact`` inserts them where a tensor must keep channels that one layer does without. Two axes, the
``whole`` of the tensor and the ``part`` of the layer, and unlike a ``Link`` a need that points one way:

- ``part[k]`` of a gather needs ``whole[index[k]]``, which may stay for others when it does not need it;
- ``whole[index[k]]`` of a scatter needs ``part[k]`` unless that is constant: a constant moves into ``rest``.

To pruners both are links: whoever masks a channel of the one masks it in the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Reference
from fxcompress.rules.axes import Axis, Contraction, Ints
from fxcompress.rules.contraction import Need
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


def _index(call: Call, known: Tensor | None) -> Ints:
    if known is None:
        raise ValueError(f"{call.node}: the index must be a buffer")
    index: Ints = known.cpu().numpy()
    return index


def _one_to_one(index: Ints, size: int) -> Need:
    """Slice ``k`` of a part needs slice ``index[k]`` of a whole of ``size``."""
    matrix = np.zeros((1, len(index), size), dtype=np.bool_)
    matrix[0, np.arange(len(index)), index] = True
    return Need(np.ones(size, dtype=np.bool_), matrix)


def _renumber(call: Call, shrink: Shrink, whole: Axis, part: Axis) -> None:
    """Let the index count the kept slices of ``whole``; without any other the call does nothing."""
    name = Reference(call.args["index"])
    old = shrink.value(name)
    rank = np.cumsum(shrink.kept(whole)) - 1
    shrink.replace(name, torch.from_numpy(rank[_index(call, old)]).to(old), exact=True)
    if shrink.count(part) == shrink.count(whole):
        shrink.identities.append(call.node)


@rule("fxcompress.gather_channels")
class GatherChannels(Rule):
    """``y[k] = x[index[k]]``."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, dim = flow.axes(call.args["input"]), call.args["dim"]
        part = flow.axes(call.args["index"])[0]
        if flow.restrict:
            index = _index(call, flow.known(call.args["index"]))
            flow.link(part, range(part.size), x[dim], index)
        else:
            flow.contract(call, call.args["input"], dim, part)
        flow.set(call.node, (*x[:dim], part, *x[dim + 1 :]))

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        call = contraction.call
        return _one_to_one(_index(call, values.known(call.args["index"])), contraction.inner.size)

    def constants(self, call: Call, values: Values) -> None:
        index = values.known(call.args["index"])
        for dim in range(len(values.map.of[call.node])):
            given = values.slices(call.args["input"], dim)
            if given is not None and index is not None:
                values.set(call.node, dim, given[index.cpu()] if dim == call.args["dim"] else given)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        dim = call.args["dim"]
        _renumber(call, shrink, shrink.axes(call.args["input"])[dim], shrink.axes(call.node)[dim])


@rule("fxcompress.scatter_channels")
class ScatterChannels(Rule):
    """``y[index[k]] = x[k]``, ``y[c] = rest[c]`` elsewhere."""

    def flow(self, call: Call, flow: Flow) -> None:
        x, dim = flow.axes(call.args["input"]), call.args["dim"]
        part, whole = x[dim], flow.axes(call.args["rest"])[0]
        part.merge(flow.axes(call.args["index"])[0])
        if flow.restrict:
            index = _index(call, flow.known(call.args["index"]))
            flow.link(part, range(part.size), whole, index)
        else:
            flow.contract(call, call.args["input"], dim, whole)
            flow.contract(call, call.args["rest"], 0, part)
        flow.set(call.node, (*x[:dim], whole, *x[dim + 1 :]))

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        call = contraction.call
        index = _index(call, values.known(call.args["index"]))
        whole = values.map.of[call.node][call.args["dim"]].size
        need = _one_to_one(index, whole)
        if contraction.source == call.args["rest"] or need.matrix is None:
            return need  # what stays of the part needs its place in the whole
        constants = values.slices(call.args["input"], contraction.dim)
        varying = np.ones(len(index), dtype=np.bool_) if constants is None else constants.isnan().numpy()
        return Need(varying, need.matrix.transpose(0, 2, 1))

    def constants(self, call: Call, values: Values) -> None:
        known, rest = values.known(call.args["index"]), values.known(call.args["rest"])
        if known is None or rest is None:
            return
        index, full = known.cpu(), rest.to(torch.float64).cpu()
        others = full[~torch.isin(torch.arange(len(full)), index)]
        for dim in range(len(values.map.of[call.node])):
            given = values.slices(call.args["input"], dim)
            if dim == call.args["dim"]:
                placed = torch.full(index.shape, torch.nan, dtype=torch.float64) if given is None else given
                values.set(call.node, dim, full.index_copy(0, index, placed))
            elif given is not None and bool((others == others[:1]).all()):
                same = given if not len(others) else torch.where(given == others[0], given, torch.nan)
                values.set(call.node, dim, same)

    def shrink(self, call: Call, shrink: Shrink) -> None:
        dim = call.args["dim"]
        part, whole = shrink.axes(call.args["input"])[dim], shrink.axes(call.node)[dim]
        constants = shrink.values.slices(call.args["input"], dim)
        if constants is not None and not shrink.keeps_all(part):
            kept = torch.from_numpy(shrink.kept(part))
            self._keep_constants(call, shrink, constants.masked_fill(kept, torch.nan))
        _renumber(call, shrink, whole, part)

    def _keep_constants(self, call: Call, shrink: Shrink, constants: Tensor) -> None:
        """Put the constants that are not NaN into ``rest``."""
        name = Reference(call.args["rest"])
        rest = shrink.value(name)
        if rest is None:
            raise ValueError(f"{call.node}: the constants must be a buffer")
        exact = rest.to(torch.float64).cpu()
        places = torch.from_numpy(_index(call, shrink.values.known(call.args["index"])))
        known = ~constants.isnan()
        exact[places[known]] = constants[known]
        rounded = exact.to(rest.dtype)
        is_exact = bool((rounded.to(torch.float64) == exact).all())
        shrink.replace(name, rounded.to(rest.device), exact=is_exact)
