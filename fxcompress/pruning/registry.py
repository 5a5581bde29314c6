"""Pruners by the name they have in a config list."""

from __future__ import annotations

from typing import TypeVar

from fxcompress.config import register_pruner
from fxcompress.pruning.base import Pruner

P = TypeVar("P", bound=type[Pruner])

PRUNERS: dict[str, type[Pruner]] = {}


def register(cls: P) -> P:
    """Class decorator: make ``cls.name`` a valid ``pruner`` for layers of ``cls.op_types``.

    Raises:
        ConfigError: if the name is taken by a pruner for other types.
    """
    register_pruner(cls.name, cls.op_types, cls.option_names())
    PRUNERS[cls.name] = cls
    return cls
