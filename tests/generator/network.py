"""From specification to network: pasteable source of an `nn.Module`, its inputs, what it is made of."""

from __future__ import annotations

import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.comparing import Inputs
from tests.generator.draft import Draft, Input, Line, Value
from tests.generator.embedding import embed
from tests.generator.randomize import randomize
from tests.generator.registry import KINDS, MAPS, TOKENS, Skip, require
from tests.generator.spec import Spec, Step
from tests.generator.tokens import FEATURES, as_map, as_tokens

PLAIN = Spec((), (), ())
HEADER = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
OPERANDS_TRIED = 6  # a step that does not apply to the value it names tries older ones
SPACES = {1: ((6,), (9,), (8,), (7,)), 2: ((6, 6), (8, 8), (7, 5), (4, 4), (9, 8)), 3: ((4, 4, 4), (5, 4, 6))}


@dataclass(frozen=True)
class Network:
    """A generated network.

    `arguments` are the model's inputs; `kinds` are the step kinds that took effect, in order; `flags` hold
    "fixed size" (the model runs at this resolution only), "functional randomness" (train mode draws random
    numbers outside any module) and "keyword inputs" (the model is called with keywords).
    """

    spec: Spec
    seed: int
    source: str
    arguments: tuple[Input, ...]
    kinds: tuple[str, ...]
    flags: frozenset[str]

    @property
    def families(self) -> frozenset[str]:
        return frozenset(KINDS[kind].family for kind in self.kinds)

    def build(self) -> nn.Module:
        """A new, freshly initialised instance of the class in `source` (float32, train mode)."""
        filename = f"<network {self.seed}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(keepends=True), filename)
        scope: dict[str, Any] = {"__name__": "generated"}
        exec(compile(self.source, filename, "exec"), scope)
        model = scope["Network"]()
        if not isinstance(model, nn.Module):
            raise TypeError("the generated class is no nn.Module")
        return model

    def model(self) -> nn.Module:
        """An instance with randomized numbers, float64, eval mode."""
        return randomize(self.build(), self.seed).eval()

    def inputs(self, batch: int = 3, grow: int = 0, seed: int = 0) -> Inputs:
        """Random inputs with `batch` samples, each spatial axis (token count) larger by `grow`."""
        made = {
            argument.name: eval(argument.code(batch, self.seed + 1000 * seed + i, grow), {"torch": torch})
            for i, argument in enumerate(self.arguments)
        }
        return made if "keyword inputs" in self.flags else tuple(made.values())


def render(spec: Spec, seed: int = 0) -> Network:
    """The network that `spec` describes; the same `spec` and `seed` give the same network and numbers."""
    draft = Draft(seed)
    kinds: list[str] = []
    _start(draft, spec.start)
    for item in spec.steps:
        if any(_apply(draft, item, item.source + further) for further in range(OPERANDS_TRIED)):
            kinds.append(item.kind)
    outputs = _finish(draft, spec.head)
    return as_network(draft, outputs, spec, kinds)


def as_network(draft: Draft, outputs: str, spec: Spec = PLAIN, kinds: Sequence[str] = ()) -> Network:
    """The network that was drafted and returns the expression `outputs`."""
    source = _source(draft, outputs)
    return Network(spec, draft.seed, source, tuple(draft.inputs), tuple(kinds), frozenset(draft.flags))


def _apply(draft: Draft, item: Step, source: int) -> bool:
    """Write the step for the value `source` places back; False where it does not apply to that value."""
    draft.turn(item.knobs)
    try:
        with draft.attempt():
            x = draft.values[-1 - source % len(draft.values)]
            draft.tokens, kind = x.tokens, KINDS[item.kind]
            if (kind.reads, x.tokens) in ((TOKENS, False), (MAPS, True)):
                x = (as_map if x.tokens else as_tokens)(draft, x)
                draft.values.append(x)
            result = kind.function(draft, x)
            draft.values += result if isinstance(result, tuple) else [result]
    except Skip:
        return False
    return True


def _start(draft: Draft, knobs: Sequence[int]) -> None:
    """Inputs and a first layer, so that there is something to prune."""
    draft.turn(knobs)
    starts: tuple[int | str, ...] = (2, 2, 2, 0, 1, 3, 2, 0, "ids", "ids", "tokens", "ids")
    start = draft.pick(starts)
    if draft.pick((False, False, False, True)):
        draft.flags.add("keyword inputs")
    if isinstance(start, str):
        _start_tokens(draft, start)
    else:
        _start_map(draft, start)


def _start_tokens(draft: Draft, start: str) -> None:
    """Token ids with their embedding, or tokens with a projection."""
    draft.tokens = True
    if start == "ids":
        draft.values.append(embed(draft))
        return
    x = draft.input((draft.pick((6, 8, 5, 9)), draft.pick((4, 6, 3))), tokens=True)
    draft.values.append(
        draft.emit(f"{draft.module(f'nn.Linear({x.features}, {draft.pick(FEATURES)})')}({x})")
    )


def _start_map(draft: Draft, rank: int) -> None:
    space = draft.pick(SPACES[rank]) if rank else ()
    x = draft.input((draft.pick((3, 4, 2, 6)), *space))
    width = draft.pick((6, 8, 4, 12, 5))
    second = draft.pick((None, None, None, "same", "vector"))
    padding, bias = draft.pick((1, 0, 1)), draft.pick((True, True, False))
    if second:
        draft.input(x.shape[1:] if second == "same" else (width,))
    layer = f"nn.Conv{rank}d({x.channels}, {width}, 3, padding={padding}, bias={bias})"
    stem = draft.module(layer if rank else f"nn.Linear({x.channels}, {width}, bias={bias})")
    draft.layers.append((stem, rank, x.channels))
    draft.values.append(draft.emit(f"{stem}({x})"))


def _finish(draft: Draft, knobs: Sequence[int]) -> str:
    """A classifier or nothing, then one or several outputs; returns the returned expression."""
    draft.turn(knobs)
    head, form = (
        draft.pick(("pool", "flatten", "none", "pool", "conv", "none")),
        draft.pick((0, 0, 0, 1, 2, 3)),
    )
    x = draft.values[-1]
    try:
        with draft.attempt():
            draft.tokens = x.tokens
            draft.values.append(_head(draft, x, head))
    except Skip:
        pass
    given = {argument.name for argument in draft.inputs}
    if all(value.name in given for value in draft.values):  # everything else was taken back or consumed
        draft.values.append(draft.emit(f"{draft.values[0]} * 1.5"))
    last, other = draft.values[-1], draft.values[draft.pick(range(len(draft.values)))]
    if form == 0 or other == last or other.name in given:
        return str(last)
    return (f"{last}, {other}", f"{{'logits': {last}, 'features': {other}}}", f"[{other}, ({last},)]")[
        form - 1
    ]


def _head(draft: Draft, x: Value, head: str) -> Value:
    classes = draft.pick((3, 5, 2))
    if x.tokens and head in ("pool", "conv"):
        pooled = {"pool": f"{x}.mean(dim=1)", "conv": f"{x}[:, {draft.pick((0, -1))}]"}[head]
        return draft.emit(f"{draft.module(f'nn.Linear({x.features}, {classes})')}({pooled})")
    if head == "conv":
        require(1 <= x.rank <= 3)
        return draft.emit(f"{draft.module(f'nn.Conv{x.rank}d({x.channels}, {classes}, 1)')}({x})")
    require(head != "none")
    if head == "flatten" and x.rank:
        draft.flags.add("fixed size")
        x = draft.emit(draft.pick((f"torch.flatten({x}, 1)", f"{x}.view({x}.size(0), -1)")))
    elif x.rank:
        x = draft.emit(f"{x}.mean({tuple(range(2, x.rank + 2))})")
    return draft.emit(f"{draft.module(f'nn.Linear({x.channels}, {classes})')}({x})")


def _source(draft: Draft, outputs: str) -> str:
    """The class, without lines whose results nothing reads."""
    ending = Line((), f"return {outputs}")
    forward = _needed(draft.forward, [ending])
    init = _needed(draft.init, forward)
    arguments = ", ".join(argument.name for argument in draft.inputs)
    body = [f"{HEADER}\n\nclass Network(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    body += [f"        {line.code}" for line in init]
    body += ["", f"    def forward(self, {arguments}):"]
    body += [f"        {code}" for line in [*forward, ending] for code in line.code.splitlines()]
    return "\n".join(body) + "\n"


def _needed(lines: Sequence[Line], readers: Sequence[Line]) -> list[Line]:
    """Those of `lines` that `readers` or a later needed line read, in order."""
    needed: list[Line] = []
    for line in reversed(lines):
        if any(later.reads(target) for later in [*needed, *readers] for target in line.targets):
            needed.insert(0, line)
    return needed
