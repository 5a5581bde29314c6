"""Which targets an entry's names and types point at, and what is wrong with those that point nowhere.

Names (``op_names``, ``op_names_re``) and types (``op_types``) of one entry narrow each other: a target has
to match one of the names, if there are names, and one of the types, if there are types. Globs follow
``fnmatch``; a regular expression has to be found somewhere in the name (``re.search``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fxcompress.config.schema import Entry
from fxcompress.config.targets import FUNCTIONAL_TYPES, Target, is_operator, nn_types
from fxcompress.config.values import near

DEFAULT = "default"


@dataclass(frozen=True)
class Scope:
    """What one entry points at, by target name.

    Attributes:
        exact: targets that ``op_names`` gives in full.
        named: targets that any name, glob or regular expression matches; None if the entry has no names.
        dropped: targets that an ``exclude_op_*`` key takes out of this entry -> that key.
        problems: what is wrong with the entry's names and types, one line each, without the entry's label.
        deferred: key and value of what may only be found in the captured graph.
    """

    exact: frozenset[str]
    named: frozenset[str] | None
    dropped: dict[str, str]
    problems: list[str] = field(default_factory=list)
    deferred: list[tuple[str, str]] = field(default_factory=list)


def is_glob(name: str) -> bool:
    """Whether the name holds a wildcard of ``fnmatch``."""
    return any(char in name for char in "*?[")


def explicit_types(entry: Entry) -> tuple[str, ...]:
    """The types the entry names itself, without ``default``."""
    return tuple(name for name in entry.op_types if name != DEFAULT)


class ScopeFinder:
    """Finds the scope of entries over one list of targets.

    Args:
        targets: everything that can be selected.
        captured: whether the functional nodes are among them.
    """

    def __init__(self, targets: Sequence[Target], *, captured: bool) -> None:
        self._targets = targets
        self._captured = captured
        self._names = {name: target.name for target in targets for name in target.names}
        self._types = {name for target in targets for name in target.op_types}
        self._containers = {prefix for name in self._names for prefix in _prefixes(name)}

    def find(self, entry: Entry, *, may_be_functional: bool) -> Scope:
        """Return the entry's scope; `may_be_functional`: unknown names could be nodes yet to be captured."""
        problems: list[str] = []
        deferred: list[tuple[str, str]] = []
        wait = may_be_functional and not self._captured

        def match(key: str, items: Iterable[str]) -> Iterator[tuple[str, set[str]]]:
            for item in items:
                found = self._match(key, item)
                if not found and wait and (not key.endswith("op_types") or is_operator(item)):
                    deferred.append((key, item))
                elif not found and (problem := self._problem(key, item, modules_only=not may_be_functional)):
                    problems.append(problem)
                yield item, found

        exact: set[str] = set()
        named: set[str] = set()
        for key in ("op_names", "op_names_re"):
            for item, found in match(key, getattr(entry, key)):
                named |= found
                if key == "op_names" and not is_glob(item):
                    exact |= found
        for _ in match("op_types", explicit_types(entry)):
            pass
        dropped: dict[str, str] = {}
        for key in ("exclude_op_types", "exclude_op_names", "exclude_op_names_re"):
            for _, found in match(key, getattr(entry, key)):
                dropped.update(dict.fromkeys(found, key))
        has_names = bool(entry.op_names or entry.op_names_re)
        return Scope(frozenset(exact), frozenset(named) if has_names else None, dropped, problems, deferred)

    def _match(self, key: str, item: str) -> set[str]:
        if key.endswith("op_types"):
            return {target.name for target in self._targets if item in target.op_types}
        if key.endswith("_re"):
            search = re.compile(item).search
            return {own for name, own in self._names.items() if search(name)}
        if is_glob(item):
            return {own for name, own in self._names.items() if fnmatchcase(name, item)}
        return {self._names[item]} if item in self._names else set()

    def _problem(self, key: str, item: str, *, modules_only: bool) -> str | None:
        """Say why an item that matches nothing is wrong; None if it is a type this model happens to lack."""
        if key.endswith("op_types"):
            return self._type_problem(key, item, modules_only=modules_only)
        nothing = f"{key}: {item!r} matches nothing"
        some = ", ".join(repr(name) for name in list(self._names)[:3]) or "none: the model has no layers"
        if key.endswith("_re"):
            return f"{nothing}; the expression is searched for in names such as {some}"
        if item in self._containers:
            return f"{nothing}: it is a container; did you mean '{item}.*'?"
        candidates = set(self._names)
        if is_glob(item):
            candidates = {f"{prefix}.*" for prefix in self._containers}
        return nothing + (near(item, candidates) or f"; give a name of model.named_modules(), such as {some}")

    def _type_problem(self, key: str, item: str, *, modules_only: bool) -> str | None:
        if item in nn_types() or (item in FUNCTIONAL_TYPES and not modules_only):
            return None
        known = self._types | nn_types() | (set() if modules_only else FUNCTIONAL_TYPES)
        present = ", ".join(sorted(self._types)) or "none"
        hint = near(item, self._types) or near(item, known) or f"; the model has {present}"
        return f"{key}: {item!r} is no operator type of this model or of torch.nn{hint}"


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts)))
