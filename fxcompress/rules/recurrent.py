"""Recurrent layers: LSTM (Hochreiter, Schmidhuber 1997; projected: Sak et al. 2014), GRU (Cho et al. 2014),
Elman networks, and their single steps (cells).

    a = W_ih x_t + b_ih,  r = W_hh h_{t−1} + b_hh                     [gates · hidden], gate by gate
    RNN    h = tanh(a + r)  or  relu(a + r)
    LSTM   i, f, o = σ(a + r)   g = tanh(a_g + r_g)   c = f c + i g   h = W_hr (o tanh(c))
    GRU    s, z = σ(a + r)      n = tanh(a_n + s r_n)                 h = (1 − z) n + z h

Hidden unit k owns row k of every gate, column k of ``W_hh`` and feature k of the states and of the result.
All layers and directions of one call have one hidden size and share their states' tensor, so a unit goes from
all of them or from none.

A unit that starts at zero and whose candidate (``g``, ``n``) is zero at every step stays zero whatever its
gates do: it may go. Units may read each other, as long as they only read zeros: the largest such set holds at
every step by induction over time. A unit of an RNN is constant where everything it reads is; it starts from
its initial state, so unless it is zero other units may not have read it. A constant input feature goes into
``b_ih``. A projected LSTM keeps more units than it has projected features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxcompress.graph.calls import Call, Ref
from fxcompress.graph.module import get_tensor
from fxcompress.rules.axes import Axis, Contraction
from fxcompress.rules.contraction import Need, Weighted, editable
from fxcompress.rules.flow import Flow
from fxcompress.rules.registry import Rule, rule
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values


@dataclass(frozen=True)
class Cell:
    """The parameters of one layer in one direction."""

    w_ih: Ref
    w_hh: Ref
    b_ih: Ref | None
    b_hh: Ref | None
    w_hr: Ref | None

    def parameters(self) -> list[Ref]:
        """Those it has."""
        return [r for r in (self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.w_hr) if r is not None]


@dataclass(frozen=True)
class Steady:
    """What is constant in one cell at every step."""

    inputs: Weighted
    hidden: Tensor
    """``[hidden]``: constants of the units; NaN where not constant."""
    state: Tensor
    """``[projected or hidden]``: constants of the state ``h`` after each step, likewise."""
    needs: tuple[tuple[Ref, Need], ...]
    """For each weight what it needs of what it reads."""


def _states(call: Call) -> list[Ref]:
    hx = call.args["hx"]
    return list(hx) if isinstance(hx, (list, tuple)) else [hx]


def _cells(call: Call) -> list[list[Cell]]:
    """The cells by layer and direction."""
    args = call.args
    if "params" not in args:
        return [[Cell(args["w_ih"], args["w_hh"], args["b_ih"], args["b_hh"], None)]]
    directions = 2 if args["bidirectional"] else 1
    count = args["num_layers"] * directions
    width = len(args["params"]) // count
    cells = []
    for start in range(0, len(args["params"]), width):
        row = list(args["params"][start : start + width])
        b_ih, b_hh = (row.pop(2), row.pop(2)) if args["has_biases"] else (None, None)
        cells.append(Cell(row[0], row[1], b_ih, b_hh, row[2] if len(row) > 2 else None))
    return [cells[i : i + directions] for i in range(0, count, directions)]


def _reads_only(weight: Tensor, ignored: Tensor) -> Tensor:
    """Rows of ``weight`` that read no column but ignored ones."""
    return ~((weight != 0) & ~ignored).any(1)


class Recurrent(Rule):
    """What all recurrent layers share."""

    gates: int
    starts_from: int | None
    """Which initial state a unit must have as zero to stay at zero (``None``: it forgets it)."""

    def units(self, inputs: Tensor, recurrent: Tensor) -> Tensor:
        """Constants ``[hidden]`` of units that start at zero, given those of ``a`` and ``r`` (``[gates,
        hidden]``).
        """
        raise NotImplementedError(type(self).__name__)

    # -- axes ----------------------------------------------------------------------------------------------
    def flow(self, call: Call, flow: Flow) -> None:
        x, layers = flow.axes(call.args["input"]), _cells(call)
        w_hh = flow.axes(layers[0][0].w_hh)
        rows, state = w_hh
        hidden = state
        if layers[0][0].w_hr is not None:
            # ATen tells a projection by its width: it must not become that of the units.
            hidden = flow.axes(layers[0][0].w_hr)[1]
            flow.need(hidden, range(state.size + 1))
        for gate in range(self.gates):
            flow.link(rows, range(gate * hidden.size, (gate + 1) * hidden.size), hidden, range(hidden.size))
        features = self._features(flow, state, len(layers[0]))
        for depth, cells in enumerate(layers):
            for cell in cells:
                self._share(call, flow, cell, x[-1] if depth == 0 else features, rows, state, hidden)
        self._results(call, flow, x, features, (state, hidden))

    def _features(self, flow: Flow, state: Axis, directions: int) -> Axis:
        """The features a layer gives: the states of all directions, one after the other."""
        if directions == 1:
            return state
        made = Axis(directions * state.size)
        for direction in range(directions):
            start = direction * state.size
            flow.link(made, range(start, start + state.size), state, range(state.size))
        return made

    def _share(
        self, call: Call, flow: Flow, cell: Cell, x: Axis, rows: Axis, state: Axis, hidden: Axis
    ) -> None:
        weights = [(cell.w_ih, rows, x), (cell.w_hh, rows, state)]
        if cell.w_hr is not None:
            weights.append((cell.w_hr, state, hidden))
        for weight, outer, inner in weights:
            made, read = flow.axes(weight)
            flow.reads(weight, 1)
            made.merge(outer)
            read.merge(inner)
            flow.contract(call, weight, 1, outer)
        for bias in (cell.b_ih, cell.b_hh):
            if bias is not None:
                flow.axes(bias)[0].merge(rows)

    def _results(
        self, call: Call, flow: Flow, x: tuple[Axis, ...], features: Axis, states: tuple[Axis, Axis]
    ) -> None:
        given = [flow.axes(ref) for ref in _states(call)]
        for axes, own in zip(given, states, strict=False):
            axes[-1].merge(own)
        if "params" not in call.args:
            results = [(x[0], own) for own, _ in zip(states, given, strict=False)]
            for axes in given:
                axes[0].merge(x[0])
            if len(results) == 1:
                flow.set(call.node, results[0])
            else:
                flow.set_several(call.node, results)
            return
        steps, batch = (x[1], x[0]) if call.args["batch_first"] else (x[0], x[1])
        flow.freeze(steps, call, "steps of a recurrence")
        for axes in given:
            flow.freeze(axes[0], call, "layers and directions")
            axes[1].merge(batch)
        last = [(axes[0], batch, own) for axes, own in zip(given, states, strict=False)]
        flow.set_several(call.node, [(*x[:-1], features), *last])

    # -- values --------------------------------------------------------------------------------------------
    def _steady(self, call: Call, values: Values) -> list[list[Steady]] | None:
        return values.once(call.node, lambda: self._make_steady(call, values))

    def _make_steady(self, call: Call, values: Values) -> list[list[Steady]] | None:
        found: list[list[Steady]] = []
        x = call.args["input"]
        given = values.slices(x, len(values.map.of[values.canonical(x)]) - 1)
        for cells in _cells(call):
            layer = [self._cell(call, values, cell, given) for cell in cells]
            known = [steady for steady in layer if steady is not None]
            if len(known) != len(layer):
                return None
            found.append(known)
            given = torch.cat([steady.state for steady in known])
        return found

    def _cell(self, call: Call, values: Values, cell: Cell, given: Tensor | None) -> Steady | None:
        """The largest set of states that are zero at every step, and what follows from it."""
        w_ih, w_hh, w_hr = (values.known(ref) for ref in (cell.w_ih, cell.w_hh, cell.w_hr))
        b_ih, b_hh = values.known(cell.b_ih), values.known(cell.b_hh)
        if w_ih is None or w_hh is None or any(values.known(ref) is None for ref in cell.parameters()):
            return None
        may_change = b_ih is not None and editable(values, cell.w_ih, cell.b_ih)
        inputs = Weighted(w_ih[None, :, :, None], given, True, may_change)
        a = inputs.outputs(b_ih)
        size = w_hh.shape[0] // self.gates
        a = torch.full((self.gates * size,), torch.nan, dtype=torch.float64) if a is None else a
        starts = [self._starts_at_zero(values, ref) for ref in _states(call)]
        zero = starts[0]
        while True:
            r = torch.zeros(len(a)).double() if b_hh is None else b_hh.to(torch.float64)
            r = torch.where(_reads_only(w_hh, zero), r, torch.nan)
            hidden = self.units(a.view(self.gates, size), r.view(self.gates, size))
            if self.starts_from is not None:
                hidden = torch.where(starts[self.starts_from], hidden, torch.nan)
            state = hidden
            if w_hr is not None:
                state = torch.where(_reads_only(w_hr, hidden == 0), 0.0, torch.nan).double()
            if bool((zero <= (state == 0)).all()):
                break
            zero = zero & (state == 0)
        needs = [(cell.w_ih, inputs.need), (cell.w_hh, _nonzero(w_hh, zero))]
        if cell.w_hr is not None and w_hr is not None:
            needs.append((cell.w_hr, _nonzero(w_hr, hidden == 0)))
        return Steady(inputs, hidden, state, tuple(needs))

    def _starts_at_zero(self, values: Values, ref: Ref) -> Tensor:
        axes = values.map.of[values.canonical(ref)]
        zero = values.zero(ref, len(axes) - 1)
        return torch.zeros(axes[-1].size, dtype=torch.bool) if zero is None else zero

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        """What is read through any of the weights that are this tensor (tied cells)."""
        layers = self._steady(contraction.call, values)
        if layers is None:
            return None
        needs = [
            need
            for cells in layers
            for steady in cells
            for weight, need in steady.needs
            if weight == contraction.source
        ]
        inner = np.logical_or.reduce([need.inner for need in needs])
        matrices = [need.matrix for need in needs if need.matrix is not None]
        return Need(inner, np.logical_or.reduce(matrices) if len(matrices) == len(needs) else None)

    def constants(self, call: Call, values: Values) -> None:
        layers = self._steady(call, values)
        if layers is None:
            return
        last = torch.cat([steady.state for steady in layers[-1]])
        everywhere = [_same([s.state for cells in layers for s in cells])]
        everywhere.append(_same([s.hidden for cells in layers for s in cells]))
        if "params" in call.args:
            values.set(call.node, 2, last, 0)
            for index in range(len(_states(call))):
                values.set(call.node, 2, everywhere[index], index + 1)
        elif len(_states(call)) == 1:
            values.set(call.node, 1, last)
        else:
            values.set(call.node, 1, last, 0)
            values.set(call.node, 1, everywhere[1], 1)

    # -- rewriting -----------------------------------------------------------------------------------------
    def shrink(self, call: Call, shrink: Shrink) -> None:
        layers, cells = self._steady(call, shrink.values), _cells(call)
        self._describe(call, shrink, cells[0][0])
        for row, steady in zip(cells, layers or (), strict=False):
            for cell, known in zip(row, steady, strict=True):
                removed = ~torch.from_numpy(shrink.kept(shrink.axes(cell.w_ih)[1]))
                added = known.inputs.folded(removed)
                value = shrink.value(cell.b_ih)
                if added is not None and value is not None:
                    shrink.replace(cell.b_ih, (value.to(torch.float64) + added).to(value.dtype))

    def _describe(self, call: Call, shrink: Shrink, cell: Cell) -> None:
        """Let the module whose call was captured say its new sizes when printed."""
        name = shrink.values.baked(cell.w_ih)
        owner = shrink.module.get_submodule(call.node.meta.get("module", ""))
        if name is None or not any(get_tensor(shrink.module, name) is p for p in owner._parameters.values()):
            return
        state = shrink.axes(cell.w_hh)[1]
        hidden = state if cell.w_hr is None else shrink.axes(cell.w_hr)[1]
        sizes = {"input_size": shrink.axes(cell.w_ih)[1], "hidden_size": hidden}
        if cell.w_hr is not None:
            sizes["proj_size"] = state
        for attribute, axis in sizes.items():
            if hasattr(owner, attribute):
                setattr(owner, attribute, shrink.count(axis))


def _nonzero(weight: Tensor, zero: Tensor) -> Need:
    """A column is needed by the rows that read it, unless what it reads is zero."""
    return Need((~zero).numpy(), (weight != 0).cpu().numpy()[None])


def _same(constants: list[Tensor]) -> Tensor:
    """Where all are the same constant."""
    equal = torch.stack([c == constants[0] for c in constants]).all(0)
    return torch.where(equal, constants[0], torch.nan)


@rule("fxcompress.lstm", "lstm_cell")
class LSTM(Recurrent):
    """``c = f c + i g``: zero while ``g`` and the first ``c`` are; then ``h = o tanh(c)`` is zero too."""

    gates, starts_from = 4, 1

    def units(self, inputs: Tensor, recurrent: Tensor) -> Tensor:
        return torch.where(inputs[2] + recurrent[2] == 0, 0.0, torch.nan).double()


@rule("fxcompress.gru", "gru_cell")
class GRU(Recurrent):
    """``h = (1 − z) n + z h``: zero while ``n`` and the first ``h`` are."""

    gates, starts_from = 3, 0

    def units(self, inputs: Tensor, recurrent: Tensor) -> Tensor:
        return torch.where((inputs[2] == 0) & (recurrent[2] == 0), 0.0, torch.nan).double()


@rule("fxcompress.rnn_tanh", "rnn_tanh_cell")
class ElmanTanh(Recurrent):
    """``h = tanh(a + r)``."""

    gates, starts_from = 1, None

    def units(self, inputs: Tensor, recurrent: Tensor) -> Tensor:
        return torch.tanh(inputs[0] + recurrent[0])


@rule("fxcompress.rnn_relu", "rnn_relu_cell")
class ElmanReLU(Recurrent):
    """``h = relu(a + r)``."""

    gates, starts_from = 1, None

    def units(self, inputs: Tensor, recurrent: Tensor) -> Tensor:
        return torch.relu(inputs[0] + recurrent[0])
