"""Recurrent layers over tokens: LSTM, GRU and RNN modules, cells in a loop, gated recurrences by hand."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import TOKENS, require, step


@step(weight=4, reads=TOKENS)
def recurrent(draft: Draft, x: Value) -> Value:
    """An LSTM, GRU or RNN between Linear layers: one or two layers, both directions, batch first or not."""
    kind, hidden = draft.pick(("LSTM", "GRU", "RNN", "LSTM", "GRU")), draft.pick((5, 4, 6))
    options = draft.pick(("", "", ", num_layers=2")) + draft.pick(("", "", ", bidirectional=True"))
    options += draft.pick(("", "", ", bias=False"))
    if kind == "RNN":
        options += draft.pick(("", ", nonlinearity='relu'"))
    if kind == "LSTM" and draft.pick((False, False, False, True)):
        options += ", proj_size=3"
    first = draft.pick((True, True, False))
    layer = draft.module(f"nn.{kind}({x.features}, {hidden}{options}, batch_first={first})")
    code = f"{layer}({x})" if first else f"{layer}({x}.transpose(0, 1))"
    out, state = draft.locals(code, 2)
    taken = draft.pick(("output", "output", "output", "last", "state"))
    if taken == "state":
        state = f"{state}[0]" if kind == "LSTM" else state
        return draft.emit(f"{state}.transpose(0, 1)")
    out = out if first else f"{out}.transpose(0, 1)"
    return draft.emit(out if taken == "output" else f"{out}[:, -1:]")


@step(weight=1, reads=TOKENS)
def recurrent_with_state(draft: Draft, x: Value) -> Value:
    """A GRU or LSTM whose first state is a projection of the first token (an encoder's summary)."""
    kind, hidden = draft.pick(("GRU", "LSTM")), draft.pick((5, 4))
    layer = draft.module(f"nn.{kind}({x.features}, {hidden}, batch_first=True)")
    start = draft.local(
        f"torch.tanh({draft.module(f'nn.Linear({x.features}, {hidden})')}({x}[:, 0])).unsqueeze(0)"
    )
    state = start if kind == "GRU" else f"({start}, {start} * 0.5)"
    return draft.emit(f"{layer}({x}, {state})[0]")


@step(weight=1, reads=TOKENS)
def recurrent_cell(draft: Draft, x: Value) -> Value:
    """A cell called once per token."""
    require(x.length <= 9)
    draft.flags.add("fixed size")
    kind, hidden = draft.pick(("GRUCell", "LSTMCell", "RNNCell")), draft.pick((5, 4))
    cell = draft.module(f"nn.{kind}({x.features}, {hidden})")
    state = "h, c = {cell}({x}[:, i], (h, c))" if kind == "LSTMCell" else "h = {cell}({x}[:, i], h)"
    lines = (
        f"h = c = {x}.new_zeros({x}.shape[0], {hidden})",
        "OUT = []",
        f"for i in range({x.length}):",
        f"    {state.format(cell=cell, x=x)}",
        "    OUT.append(h)",
        "OUT = torch.stack(OUT, dim=1)",
    )
    return draft.block("\n".join(lines))


@step(weight=1, reads=TOKENS)
def gated_recurrence(draft: Draft, x: Value) -> Value:
    """h = a h + (1 - a) v per feature, unrolled over the tokens (minimal gated unit, state space)."""
    require(x.length <= 9)
    draft.flags.add("fixed size")
    gate, value = (draft.module(f"nn.Linear({x.features}, {x.features})") for _ in "av")
    a, v = draft.locals(f"torch.sigmoid({gate}({x})), {value}({x})", 2)
    lines = (
        f"h = {v}[:, 0]",
        "OUT = [h]",
        f"for i in range(1, {x.length}):",
        f"    h = {a}[:, i] * h + (1.0 - {a}[:, i]) * {v}[:, i]",
        "    OUT.append(h)",
        "OUT = torch.stack(OUT, dim=1)",
    )
    return draft.block("\n".join(lines))
