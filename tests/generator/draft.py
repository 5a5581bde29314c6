"""A network while it is being written: source lines, and the same lines already executed.

Each line is run on small float64 tensors as soon as it is written, so shapes are read off real results
instead of being computed twice, and a step that torch refuses (kernel larger than the input, say), that
overflows, or that would write into the model's input is taken back as if it had not been drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional

from tests.generator.randomize import randomize
from tests.generator.registry import Skip

T = TypeVar("T")
LARGEST_VALUE = 200.0  # keeps float64 round-off of a chain of steps far below the laws' 1e-9
LARGEST_SIZE = 6000
LIVE_BATCH = 3


@dataclass(frozen=True)
class Value:
    """A tensor of the drafted network: its variable name and its shape, batch first.

    As a map its channels are the second axis; as `tokens` its features are the last of three axes.
    """

    name: str
    shape: tuple[int, ...]
    tokens: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def rank(self) -> int:
        """Number of spatial axes: 0 for [N, C], 2 for [N, C, H, W]."""
        return len(self.shape) - 2

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[2:]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.shape[1]

    @property
    def features(self) -> int:
        """Features of a token."""
        return self.shape[2]


@dataclass(frozen=True)
class Input:
    """An input of the model: its shape without the batch axis, its layout, the vocabulary of token ids.

    A map is [C, *space], tokens are [T, features]; token ids ([T], integers) have a `vocabulary`.
    """

    name: str
    shape: tuple[int, ...]
    tokens: bool = False
    vocabulary: int = 0

    def code(self, batch: int, seed: int, grow: int = 0) -> str:
        """An expression that makes the input, each spatial axis (or the token count) larger by `grow`."""
        fixed = 0 if self.vocabulary or self.tokens else 1
        axes = range(len(self.shape))
        last = len(self.shape) - 1 if self.tokens else len(self.shape)
        shape = (batch, *(n + grow * (fixed <= i < last) for i, n in zip(axes, self.shape, strict=True)))
        generator = f"generator=torch.Generator().manual_seed({seed})"
        if self.vocabulary:
            return f"torch.randint({self.vocabulary}, {shape}, {generator})"
        return f"torch.randn({shape}, dtype=torch.float64, {generator})"


@dataclass(frozen=True)
class Line:
    """One statement: the names it defines (module attributes or variables) and its code."""

    targets: tuple[str, ...]
    code: str

    def reads(self, name: str) -> bool:
        return re.search(rf"(?<![\w.]){re.escape(name)}\b", self.code) is not None


@dataclass
class Draft:
    """Lines of `__init__` and `forward` written so far, with their live values."""

    seed: int
    init: list[Line] = field(default_factory=list)
    forward: list[Line] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    layers: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # name, rank, in channels: reusable convs
    inputs: list[Input] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    tokens: bool = False  # the layout of what is emitted
    _knobs: list[int] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self.live = nn.Module()
        self.scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional, "self": self.live}

    # -- choices ---------------------------------------------------------------------------------------------

    def turn(self, knobs: Sequence[int]) -> None:
        """Read the following choices from `knobs`; when they run out, every choice is its first option."""
        self._knobs = list(knobs)

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, the first being the plainest."""
        if not options:
            raise Skip
        return options[(self._knobs.pop(0) if self._knobs else 0) % len(options)]

    def divisor(self, number: int, *, above: int = 0) -> int:
        """A divisor of `number` larger than `above`."""
        return self.pick([d for d in range(1, number + 1) if number % d == 0 and d > above])

    def partner(self, value: Value) -> Value:
        """Another value of the same shape and layout; `Skip` where there is none."""
        alike = [v for v in reversed(self.values) if (v.shape, v.tokens) == (value.shape, value.tokens)]
        return self.pick([other for other in alike if other != value])

    @property
    def visible(self) -> list[Value]:
        """The values of the layout that the present step reads."""
        return [value for value in self.values if value.tokens == self.tokens]

    # -- writing ---------------------------------------------------------------------------------------------

    def input(self, shape: Sequence[int], *, tokens: bool = False, vocabulary: int = 0) -> Value:
        """A new model input of `shape` (without the batch axis); steps see no token ids."""
        new = Input(f"x{self._count}", tuple(shape), tokens, vocabulary)
        self._count += 1
        self.scope[new.name] = eval(new.code(LIVE_BATCH, self.seed + len(self.inputs)), self.scope)
        self.inputs.append(new)
        value = Value(new.name, (LIVE_BATCH, *shape), tokens)
        if not vocabulary:
            self.values.append(value)
        return value

    def attribute(self, stem: str, code: str) -> str:
        """`self.<stem><n> = code` in `__init__`; returns `self.<stem><n>`."""
        name = f"{stem}{self._count}"
        self._count += 1
        self.statement(f"self.{name} = {code}", f"self.{name}")
        added = getattr(self.live, name)
        if isinstance(added, nn.Parameter):
            randomize(nn.ParameterDict({name: added}), self.seed)
        else:
            randomize(added.eval(), self.seed, prefix=f"{name}.")
        return f"self.{name}"

    def module(self, code: str) -> str:
        """A submodule from `code` such as `nn.Conv2d(3, 4, 3)`, named after its class."""
        return self.attribute(code.split("(")[0].split(".")[-1].lower(), code)

    def parameter(self, *shape: int) -> str:
        """A free parameter of `shape`."""
        return self.attribute("weight", f"nn.Parameter(torch.ones({', '.join(map(str, shape))}))")

    def buffer(self, code: str, *, persistent: bool = True) -> str:
        """A registered buffer; returns `self.<name>`."""
        name = f"buffer{self._count}"
        self._count += 1
        kept = "" if persistent else ", persistent=False"
        self.statement(f"self.register_buffer('{name}', {code}{kept})", f"self.{name}")
        return f"self.{name}"

    def statement(self, code: str, target: str) -> None:
        """Any further line of `__init__` that redefines `target`."""
        exec(code, self.scope)
        self.init.append(Line((target,), code))

    def emit(self, code: str) -> Value:
        """`x<n> = code` in `forward`."""
        return self.emit_several(code, 1)[0]

    def emit_several(self, code: str, count: int) -> tuple[Value, ...]:
        """`x<n>, x<n+1>, ... = code` in `forward`."""
        names = [f"x{self._count + i}" for i in range(count)]
        self._count += count
        return self._run(names, f"{', '.join(names)} = {code}")

    def block(self, code: str) -> Value:
        """Several statements in `forward` that define the variable written `OUT` in `code`."""
        name = f"x{self._count}"
        self._count += 1
        return self._run([name], code.replace("OUT", name))[0]

    def local(self, code: str) -> str:
        """`x<n> = code` in `forward`, of any shape; steps of other kinds do not see it."""
        return self.locals(code, 1)[0]

    def locals(self, code: str, count: int) -> tuple[str, ...]:
        """`x<n>, x<n+1>, ... = code` in `forward`, likewise."""
        names = tuple(f"x{self._count + i}" for i in range(count))
        self._count += count
        self._write(names, f"{', '.join(names)} = {code}")
        return names

    def shape(self, name: object) -> tuple[int, ...]:
        """The live shape of a variable or attribute."""
        return tuple(eval(str(name), self.scope).shape)

    def _run(self, names: Sequence[str], code: str) -> tuple[Value, ...]:
        self._write(names, code)
        return tuple(self._admit(name) for name in names)

    def _write(self, names: Sequence[str], code: str) -> None:
        exec(code, self.scope)
        self.forward.append(Line(tuple(names), code))

    def _admit(self, name: str) -> Value:
        tensor = self.scope[name]
        shape = tuple(tensor.shape)
        if not 0 < tensor.numel() <= LARGEST_SIZE or shape[0] != LIVE_BATCH or len(shape) > 6:
            raise Skip
        if tensor.is_floating_point() and not bool((tensor.detach().abs() < LARGEST_VALUE).all()):
            raise Skip
        return Value(name, shape, self.tokens and len(shape) == 3)

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Take back what the body writes if it skips, torch refuses it, or it writes to an input."""
        before = len(self.init), len(self.forward), len(self.layers), list(self.values), set(self.flags)
        inputs, tokens = len(self.inputs), self.tokens
        try:
            yield
            if any(self.scope[value.name]._version for value in self.inputs):
                raise Skip
        except (Skip, RuntimeError, ValueError, IndexError):
            del self.init[before[0] :], self.forward[before[1] :], self.layers[before[2] :]
            self.values, self.flags = before[3], before[4]
            del self.inputs[inputs:]
            raise Skip from None
        finally:
            self.tokens = tokens
