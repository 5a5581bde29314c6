"""What a single value of a config entry may be: one small check per kind of value.

Each check returns the normalized value or raises ``ValueError`` with "expected ..., got ...; remedy";
``schema.parse`` puts the entry and the key in front of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Generic, NoReturn, TypeVar

from pydantic import ValidationInfo

from fxcompress.errors import did_you_mean

T = TypeVar("T")
Granularity = str | tuple[int, ...]
Options = tuple[tuple[str, object], ...]
"""Options of an algorithm, in the order in which they were given."""

QUANT_TYPES = ("weight", "input", "output")
QUANT_DTYPES = ("int", "uint")
QUANT_SCHEMES = (
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
)
QUANT_SCALES = ("float", "power_of_two")
GRANULARITIES = ("default", "element", "row", "out_channel", "in_channel", "head", "head_dim", "2:4")


@dataclass(frozen=True)
class PerType(Generic[T]):
    """One value for each tensor a quantizer may touch: the weight, the inputs, the outputs."""

    weight: T
    input: T
    output: T

    def __getitem__(self, quant_type: str) -> T:
        """Return the value for ``"weight"``, ``"input"`` or ``"output"`` (``KeyError`` otherwise)."""
        if quant_type not in QUANT_TYPES:
            raise KeyError(quant_type)
        value: T = getattr(self, quant_type)
        return value


DEFAULT_BITS = PerType(8, 8, 8)
DEFAULT_DTYPE = PerType("int", "uint", "uint")
DEFAULT_SCHEME = PerType("per_channel_symmetric", "per_tensor_affine", "per_tensor_affine")
DEFAULT_SCALE = PerType("float", "float", "float")


def shown(value: object) -> str:
    """Return ``repr(value)``, shortened to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def near(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest name, or ``""``; another case is the closest."""
    names = sorted(set(candidates))
    for candidate in names:
        if candidate.casefold() == name.casefold():
            return f"; did you mean {candidate!r}?"
    return did_you_mean(name, names, limit=1)


def fail(expected: str, got: object, remedy: str) -> NoReturn:
    """Raise the ``ValueError`` that ``schema.parse`` turns into a line of a ``ConfigError``."""
    raise ValueError(f"expected {expected}, got {shown(got)}; {remedy}")


def one_of(value: object, names: Iterable[str]) -> str:
    """Check that ``value`` is one of the names; a near-miss is suggested."""
    allowed = tuple(names)
    if isinstance(value, str) and value in allowed:
        return value
    hint = near(value, allowed) if isinstance(value, str) else ""
    fail("one of " + ", ".join(map(repr, allowed)), value, hint.removeprefix("; ") or "use one of these")


def names(value: object) -> tuple[str, ...]:
    """Check a non-empty list of non-empty strings."""
    expected = "a non-empty list of strings"
    if isinstance(value, str):
        fail(expected, value, f"write [{value!r}]")
    if not isinstance(value, list | tuple):
        fail(expected, value, "write for example ['conv1', 'layer1.*']")
    if not value:
        fail(expected, value, "name at least one, or leave the key out")
    for item in value:
        if not isinstance(item, str) or not item:
            fail("strings in the list", item, "write each name as a non-empty string")
    return tuple(value)


def patterns(value: object) -> tuple[str, ...]:
    """Check a non-empty list of valid regular expressions."""
    checked = names(value)
    for item in checked:
        try:
            re.compile(item)
        except re.error as error:
            fail("a regular expression", item, f"it does not compile ({error}); for globs use op_names")
    return checked


def flag(value: object) -> bool:
    """Check ``True`` or ``False``."""
    if not isinstance(value, bool):
        fail("True or False", value, "write True, or leave the key out")
    return value


def fraction(value: object) -> float:
    """Check a number in [0, 1)."""
    expected = "a number in [0, 1)"
    if isinstance(value, str):
        fail(expected, value, "write the number without quotes")
    number = _real(value)
    if number is None:
        fail(expected, value, "write for example 0.5 to remove half")
    if not 0 <= number < 1:
        remedy = f"write {number / 100:g} for {number:g} %" if 2 <= number < 100 else "0.5 removes half"
        fail(expected, value, remedy)
    return number


def limit(value: object) -> float:
    """Check a number in (0, 1]."""
    number = _real(value)
    if number is None or not 0 < number <= 1:
        fail("a number in (0, 1]", value, "0.9 keeps at least a tenth of every layer")
    return number


def _real(value: object) -> float | None:
    """Return the number as a float (infinite if it is too large for one), None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def step(value: object) -> int:
    """Check an integer that is not negative."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        fail("an integer of at least 0", value, "0 quantizes from the first step")
    return int(value)


def epoch(value: object) -> int:
    """Check the number of an epoch, from 0."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        fail("an integer of at least 0", value, "epochs count from 0")
    return int(value)


def count(value: object) -> int:
    """Check a positive integer."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        fail("an integer of at least 1", value, "write for example 1")
    return int(value)


def bits(value: object) -> int:
    """Check an integer in 1..32."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= 32:
        fail("an integer in 1..32", value, "write for example 8")
    return int(value)


def granularity(value: object) -> Granularity:
    """Check ``None``, one of the named granularities, or a block of positive integers."""
    if value is None:
        return "default"
    if isinstance(value, list | tuple):
        if not value or any(isinstance(n, bool) or not isinstance(n, Integral) or int(n) < 1 for n in value):
            fail("a block of positive integers", value, "write for example [4, 4]")
        return tuple(int(n) for n in value)
    if isinstance(value, str) and value in GRANULARITIES:
        return value
    hint = near(value, GRANULARITIES).removeprefix("; ") if isinstance(value, str) else ""
    allowed = ", ".join(map(repr, GRANULARITIES))
    fail(f"one of {allowed} or a block such as [4, 4]", value, hint or "leave it out for the pruner's own")


def algorithm(kind: str) -> Callable[[object, ValidationInfo], str]:
    """Return a check for the name of an algorithm of a kind; ``info.context`` holds the names by kind."""

    def checked(value: object, info: ValidationInfo) -> str:
        return one_of(value, sorted((info.context or {}).get(kind, ())))

    return checked


def split_options(kind: str, value: object, known: Callable[[str], Iterable[str]]) -> tuple[object, Options]:
    """The name of an algorithm, and the options beside it, of ``{"name": "ptq", "observer": "mse"}``.

    Args:
        kind: the key.
        value: a name alone, or a dict of name and options.
        known: name → its options.
    """
    if not isinstance(value, Mapping):
        return value, ()
    name = value.get("name")
    if not isinstance(name, str):
        fail(f"the name of a {kind}, or a dict with its 'name' and options", value, "add 'name'")
    allowed = tuple(known(name))
    for key in value:
        if key != "name" and not allowed:
            fail(f"no option beside the name {name!r}", key, f"this {kind} has none")
        if key != "name":
            one_of(key, allowed)
    return name, tuple((key, item) for key, item in value.items() if key != "name")


pruner = algorithm("pruner")
quantizer = algorithm("quantizer")


def quant_types(value: object) -> tuple[str, ...]:
    """Check a non-empty list out of weight, input, output; returned in that order, without repeats."""
    chosen = {one_of(item, QUANT_TYPES) for item in names(value)}
    return tuple(t for t in QUANT_TYPES if t in chosen)


def per_type(check: Callable[[object], T], default: PerType[T]) -> Callable[[object], PerType[T]]:
    """Return a check for one value for all tensors, or a dict with one value per tensor.

    A tensor that the dict leaves out gets the default.
    """

    def checked(value: object) -> PerType[T]:
        if not isinstance(value, Mapping):
            single = check(value)
            return PerType(single, single, single)
        if not value:
            fail(
                "a value, or a dict with one per quant type", value, f"write {{'weight': {default.weight!r}}}"
            )
        given = {one_of(key, QUANT_TYPES): check(item) for key, item in value.items()}
        return PerType(*(given.get(t, default[t]) for t in QUANT_TYPES))

    return checked


quant_bits = per_type(bits, DEFAULT_BITS)
quant_dtype = per_type(lambda value: one_of(value, QUANT_DTYPES), DEFAULT_DTYPE)
quant_scheme = per_type(lambda value: one_of(value, QUANT_SCHEMES), DEFAULT_SCHEME)
quant_scale = per_type(lambda value: one_of(value, QUANT_SCALES), DEFAULT_SCALE)
