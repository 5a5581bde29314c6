"""The names a config list may give to an algorithm, and the operator types each algorithm works on.

A pruner that is added later registers itself (``register_pruner("taylor", {"Conv2d", "Linear"})``) and its
name is then valid in every config list; ``default`` in ``op_types`` means the types registered here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from fxcompress.errors import ConfigError

PRUNABLE = frozenset(
    {
        "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
        "Linear", "Conv1D", "MultiheadAttention",
    }
)  # fmt: skip
"""Operator types whose weights the built-in pruners mask (``Conv1D`` is a linear layer with a transposed
weight, as in GPT-2; of ``MultiheadAttention`` the projections to queries, keys and values)."""

QUANTIZABLE = PRUNABLE - {"MultiheadAttention"} | {"add", "matmul"}
"""Operator types that ``default`` means in an entry with quantization keys."""

DEFAULT_PRUNER = "l1"
DEFAULT_QUANTIZER = "qat"
QUANTIZERS = ("bnn", "dorefa", "lsq", "naive", "ptq", "qat")

_PRUNERS: dict[str, frozenset[str]] = {}


def register_pruner(name: str, op_types: Iterable[str]) -> None:
    """Make ``name`` a valid ``pruner`` for layers of the given operator types.

    Raises:
        ConfigError: if the name is already taken by a pruner for other types.
    """
    types = frozenset(op_types)
    if _PRUNERS.get(name, types) != types:
        raise ConfigError(
            f"pruner {name!r}: expected a new name, got one already registered for "
            f"{', '.join(sorted(_PRUNERS[name]))}; register it under another name"
        )
    _PRUNERS[name] = types


def known_pruners() -> Mapping[str, frozenset[str]]:
    """Return a read-only view: pruner name -> operator types it supports."""
    return MappingProxyType(_PRUNERS)
