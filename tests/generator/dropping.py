"""Dropout in its forms; in eval mode all are the identity."""

from __future__ import annotations

from tests.generator.draft import Draft, Value
from tests.generator.registry import ANY, require, step


@step(weight=2, reads=ANY)
def dropout(draft: Draft, x: Value) -> Value:
    options = ("Dropout(0.3)", "AlphaDropout(0.2)", "Dropout(0.1)")
    return draft.emit(f"{draft.module(f'nn.{draft.pick(options)}')}({x})")


@step(weight=1)
def channel_dropout(draft: Draft, x: Value) -> Value:
    require(1 <= x.rank <= 3)
    return draft.emit(f"{draft.module(f'nn.Dropout{x.rank}d(0.4)')}({x})")


@step(weight=1, reads=ANY)
def functional_dropout(draft: Draft, x: Value) -> Value:
    """Randomness that belongs to no module, so that capture in eval mode cannot know of it."""
    draft.flags.add("functional randomness")
    return draft.emit(f"F.dropout({x}, 0.25, training=self.training)")
