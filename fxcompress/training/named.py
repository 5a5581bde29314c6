"""The algorithms that the entries of a config list name, made for the layers they are to work on.

[{"quantizer": {"name": "ptq", "observer": "mse"}}, {"quantizer": "lsq", "op_names": ["fc"]}]
→  PTQ_Quantizer(..., observer="mse") for all layers but fc, LSQQuantizer(...) for fc
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from fxcompress.config import Entry, Selection
from fxcompress.errors import ConfigError
from fxcompress.training.compressor import Compressor

C = TypeVar("C", bound=Compressor[Any])
S = TypeVar("S")


def named_algorithms(
    known: Mapping[str, type[C]],
    model: nn.Module,
    selection: Selection,
    chosen: Mapping[str, S],
    **shared: Any,
) -> list[tuple[C, dict[str, S]]]:
    """An algorithm for every name, with its options, that ``chosen`` (layer → settings) holds; its layers.

    Args:
        known: by name; all of one ``kind``.
        shared: options that all of the kind get.

    Raises:
        ConfigError: naming the entry that gave an option which the algorithm refuses.
    """
    groups: dict[tuple[str, str], dict[str, S]] = {}
    kind = next(iter(known.values())).kind
    for layer, settings in chosen.items():
        key = (getattr(settings, kind), repr(getattr(settings, f"{kind}_options")))
        groups.setdefault(key, {})[layer] = settings
    found: list[tuple[C, dict[str, S]]] = []
    for (name, _), layers in groups.items():
        first: Any = next(iter(layers.values()))
        options = dict(getattr(first, f"{kind}_options"))
        try:
            found.append((known[name](model, selection, **shared, **options), layers))
        except ConfigError as error:
            if not options:
                raise
            raise ConfigError(f"config_list[{first.sources[kind]}]: {kind}: {name!r}: {error}") from error
    return found


def refuse_options(entries: Sequence[Entry], algorithm: type[Compressor[Any]]) -> None:
    """Refuse options in entries where an algorithm is made by hand.

    Raises:
        ConfigError: naming the entry.
    """
    kind = algorithm.kind
    for entry in entries:
        options = getattr(entry, f"{kind}_options")
        if options:
            given = ", ".join(f"{name}={value!r}" for name, value in options)
            raise ConfigError(
                f"{entry.label}: {kind}: expected a name without options, got {given}; pass options to "
                f"{algorithm.__name__} itself, or use fxcompress.compile"
            )
