"""The names a config list may give to an algorithm, and the operator types each algorithm works on.

An algorithm registers itself (``register_pruner("taylor", {"Conv2d", "Linear"})``) and its name is then valid
in every config list; ``default`` in ``op_types`` means the types registered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from fxcompress.errors import ConfigError

PRUNABLE = frozenset(
    {
        "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
        "Linear", "Conv1D", "MultiheadAttention",
    }
)  # fmt: skip
"""Operator types whose weights the built-in pruners mask (``Conv1D`` is a linear layer with a transposed
weight, as in GPT-2; of ``MultiheadAttention`` the projections to queries, keys and values)."""

QUANTIZABLE = PRUNABLE
"""The same: what ``default`` means in an entry with quantization keys; operators between them (``add``,
pooling, ...) join where they have an integer kernel."""

DEFAULT_PRUNER = "l1"
DEFAULT_QUANTIZER = "qat"

_PRUNERS: dict[str, frozenset[str]] = {}
_QUANTIZERS: dict[str, frozenset[str]] = {}
_DEFAULTS: dict[str, Mapping[str, Any]] = {}
_OPTIONS: dict[tuple[str, str], tuple[str, ...]] = {}


def register_pruner(name: str, op_types: Iterable[str], options: Iterable[str] = ()) -> None:
    """Make ``name`` a valid ``pruner`` for layers of the given operator types; an entry that names it may
    give it ``options``.

    Raises:
        ConfigError: if the name is already taken by a pruner for other types.
    """
    _register(_PRUNERS, "pruner", name, frozenset(op_types))
    _OPTIONS["pruner", name] = tuple(options)


def register_quantizer(
    name: str,
    op_types: Iterable[str],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    options: Iterable[str] = (),
) -> None:
    """Make ``name`` a valid ``quantizer``; ``default`` means the given operator types to it.

    Args:
        name: its name.
        op_types: what it works on.
        defaults: fields of ``QuantSettings`` for layers to which no entry gives them, where not the usual.
        options: names of options that an entry may give it.

    Raises:
        ConfigError: if the name is already taken by a quantizer for other types.
    """
    _register(_QUANTIZERS, "quantizer", name, frozenset(op_types))
    _DEFAULTS[name] = defaults
    _OPTIONS["quantizer", name] = tuple(options)


def known_options(kind: str, name: str) -> tuple[str, ...]:
    """The options of a ``"pruner"`` or a ``"quantizer"`` that an entry may give."""
    return _OPTIONS.get((kind, name), ())


def quantizer_defaults(name: str) -> Mapping[str, Any]:
    """What ``register_quantizer`` was told of a quantizer."""
    return _DEFAULTS.get(name, MappingProxyType({}))


def _register(table: dict[str, frozenset[str]], kind: str, name: str, types: frozenset[str]) -> None:
    if table.get(name, types) != types:
        raise ConfigError(
            f"{kind} {name!r}: expected a new name, got one already registered for "
            f"{', '.join(sorted(table[name]))}; register it under another name"
        )
    table[name] = types


def known_pruners() -> Mapping[str, frozenset[str]]:
    """Return a read-only view: pruner name -> operator types it supports."""
    import fxcompress.pruning  # noqa: F401  the built-in ones register themselves

    return MappingProxyType(_PRUNERS)


def known_quantizers() -> Mapping[str, frozenset[str]]:
    """Return a read-only view: quantizer name -> operator types that ``default`` means to it."""
    import fxcompress.quantization  # noqa: F401  the built-in ones register themselves

    return MappingProxyType(_QUANTIZERS)
