"""Quantizers by the name they have in a config list."""

from __future__ import annotations

from typing import TypeVar

from fxcompress.config import register_quantizer
from fxcompress.quantization.base import Quantizer

Q = TypeVar("Q", bound=type[Quantizer])

QUANTIZERS: dict[str, type[Quantizer]] = {}


def register(cls: Q) -> Q:
    """Class decorator: make ``cls.name`` a valid ``quantizer``.

    Raises:
        ConfigError: if the name is taken by a quantizer for other types.
    """
    register_quantizer(cls.name, cls.op_types, cls.own_defaults(), cls.option_names())
    QUANTIZERS[cls.name] = cls
    return cls
