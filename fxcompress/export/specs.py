"""Pytree specs (how ``forward`` packs inputs and outputs) as JSON.

torch's ``treespec_loads`` imports whatever module a file names, so specs have a small format of their own:
``null`` is a leaf; nodes are ``["tuple" | "list", [...]]`` and ``["dict" | "ordereddict", keys, [...]]``.
"""

from __future__ import annotations

import collections
from typing import Any

from torch.utils import _pytree as pytree

from fxcompress.errors import ExportError
from fxcompress.export.values import Json, NotStorable, Reader, Writer, malformed

_SEQUENCES = {tuple: "tuple", list: "list"}
_MAPPINGS: dict[Any, str] = {dict: "dict", collections.OrderedDict: "ordereddict"}


def write_spec(spec: pytree.TreeSpec, notes: list[str]) -> Json:
    """``spec`` as JSON. Classes of the user's become dicts (named fields) or tuples, which ``notes`` says."""
    if spec.is_leaf():
        return None
    children = [write_spec(child, notes) for child in spec.children()]
    cls, context = spec.type, spec.context
    if cls in _SEQUENCES:
        return [_SEQUENCES[cls], children]
    if cls in _MAPPINGS:
        return [_MAPPINGS[cls], _write_keys(context), children]
    names = _field_names(cls, context)
    name = getattr(context if isinstance(context, type) else cls, "__name__", str(cls))
    if names is not None and len(names) == len(children):
        notes.append(f"the stored model returns a dict where the original used {name}")
        return ["dict", _write_keys(names), children]
    notes.append(f"the stored model uses a tuple where the original used {name}")
    return ["tuple", children]


def output_names(spec: pytree.TreeSpec) -> list[str] | None:
    """A name for each leaf of a mapping or of a class with named fields: its key; with numbers where a value
    has several leaves. ``None`` for everything else.
    """
    keys = spec.context if spec.type in _MAPPINGS else _field_names(spec.type, spec.context)
    if spec.is_leaf() or keys is None or len(keys) != spec.num_children:
        return None
    names = []
    for key, child in zip(keys, spec.children(), strict=True):
        names += [str(key)] if child.is_leaf() else [f"{key}_{i}" for i in range(child.num_leaves)]
    return names


def _field_names(cls: Any, context: Any) -> list[str] | None:
    """Field names of a dataclass or an output class with named fields; ``None`` for tuple-like classes."""
    candidate = context
    if isinstance(context, (list, tuple)) and len(context) == 2 and isinstance(context[0], (list, tuple)):
        candidate = context[0]
    if isinstance(candidate, (list, tuple)) and candidate and all(isinstance(n, str) for n in candidate):
        return list(candidate)
    return None


def _write_keys(keys: Any) -> list[Json]:
    try:
        return [Writer().write(key) for key in keys]
    except NotStorable as error:
        raise ExportError(
            f"an input or output dict has keys of type {error}; expected strings or numbers\n"
            "Wrap the model so that its dicts have string keys."
        ) from error


def read_spec(data: Json, where: str) -> pytree.TreeSpec:
    """The spec behind ``data``.

    Raises:
        ExportError: for anything ``write_spec`` does not write.
    """
    if data is None:
        return pytree.treespec_leaf()
    try:
        kind, *keys, children = data
        specs = [read_spec(child, where) for child in children]
        for cls, name in _SEQUENCES.items():
            if kind == name and not keys:
                return pytree.TreeSpec(cls, None, specs)
        for cls, name in _MAPPINGS.items():
            if kind == name and len(keys) == 1 and len(keys[0]) == len(specs):
                return pytree.TreeSpec(cls, Reader().several(keys[0], where), specs)
    except (TypeError, ValueError) as error:
        raise malformed(where, data, error) from error
    raise malformed(where, data, None)
