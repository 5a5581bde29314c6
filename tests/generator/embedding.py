"""Token ids: embeddings with positions and segments, an output projection tied to the embedding."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import TOKENS, require, step
from tests.generator.tokens import FEATURES, norm

TABLE = -2  # the rank under which `Draft.layers` holds embeddings
MOST_INPUTS = 3


def embed(draft: Draft) -> Value:
    """A new input of token ids and its embedding, with what transformers add to it."""
    length, features = draft.pick((6, 5, 8, 9)), draft.pick(FEATURES)
    vocabulary = draft.pick((11, 7, 16))
    ids = draft.input((length,), vocabulary=vocabulary)
    table = draft.module(f"nn.Embedding({vocabulary}, {features}{draft.pick(('', '', ', padding_idx=1'))})")
    draft.layers.append((table, TABLE, features))
    x = draft.emit(f"{table}({ids})")
    positions = draft.pick(("none", "table", "offset", "parameter"))
    if positions == "parameter":
        draft.flags.add("fixed size")
        x = draft.emit(f"{x} + {draft.parameter(1, length, features)}")
    elif positions != "none":
        places = draft.module(f"nn.Embedding({length + 4}, {features})")
        at = f"torch.arange({ids}.shape[1])" + (" + 2" if positions == "offset" else ".unsqueeze(0)")
        x = draft.emit(f"{x} + {places}({at})")
    if draft.pick((False, False, True)):
        segments = draft.input((length,), vocabulary=2)
        x = draft.emit(f"{x} + {draft.module(f'nn.Embedding(2, {features})')}({segments})")
    return norm(draft, x) if draft.pick((False, True)) else x


@step(weight=2, reads=TOKENS)
def second_sequence(draft: Draft, x: Value) -> Value:
    """Another input of token ids, embedded by the same table where one fits; used by later steps."""
    require(len(draft.inputs) < MOST_INPUTS)
    ids = draft.input((x.length,), vocabulary=5)
    tables = [name for name, rank, features in draft.layers if (rank, features) == (TABLE, x.features)]
    table = draft.pick((*tables, f"{draft.module(f'nn.Embedding(5, {x.features})')}"))
    return draft.emit(
        draft.pick((f"{x} + {table}({ids})", f"{table}({ids}) * {x}.sigmoid()", f"{table}({ids})"))
    )


@step(weight=2, reads=TOKENS)
def tied_output(draft: Draft, x: Value) -> Value:
    """Logits over the vocabulary by the embedding's own weight (or a Linear that shares it)."""
    tables = [name for name, rank, features in draft.layers if (rank, features) == (TABLE, x.features)]
    table = draft.pick(tables)
    form = draft.pick(("functional", "layer", "product"))
    if form == "layer":
        size = draft.shape(f"{table}.weight")[0]
        layer = draft.module(f"nn.Linear({x.features}, {size}, bias={draft.pick((False, True))})")
        draft.statement(f"{layer}.weight = {table}.weight", layer)
        return draft.emit(f"{layer}({x})")
    if form == "product":
        return draft.emit(f"{x} @ {table}.weight.transpose(0, 1)")
    return draft.emit(f"F.linear({x}, {table}.weight)")


@step(weight=1, reads=TOKENS)
def looked_up_gate(draft: Draft, x: Value) -> Value:
    """An embedding of the position parity, or one chosen by what the tokens are (argmax)."""
    size = draft.pick((3, 2))
    table = draft.module(f"nn.Embedding({size}, {x.features})")
    options = (
        f"{table}(torch.arange({x}.shape[1]) % {size})",
        f"F.embedding(torch.arange({x}.shape[1]) % {size}, {table}.weight)",
    )
    return draft.emit(f"{x} * {draft.pick(options)}")
