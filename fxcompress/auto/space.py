"""Search spaces of the seeds: config lists with ranges in the place of values.

    generator = AutoCompressionSearchSpaceGenerator()
    generator.add_config("l1", [{"sparsity": {"_type": "uniform", "_value": [0.2, 0.8]}}])
    generator.add_config("qat", [{"quant_bits": {"_type": "choice", "_value": [4, 8]}}])
    space = generator.dumps()                 # plain dicts and lists, for JSON

``_type`` and ``_value``: ``choice`` options; ``uniform`` [low, high]; ``loguniform`` [low, high], uniform in
the logarithm; ``quniform`` and ``qloguniform`` [low, high, q], that rounded to a multiple of ``q`` and
clipped; ``randint`` [low, high), a whole number. An option may be a dict with ``_name`` and ranges of its
own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fxcompress.auto.algorithms import algorithm
from fxcompress.config import parse
from fxcompress.errors import ConfigError, did_you_mean

_SIZES = {"choice": None, "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3, "randint": 2}
_KINDS = ("pruner", "quantizer")


class Draw(Protocol):
    """What ranges are drawn from: an ``optuna.Trial``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, ``high`` included."""


class AutoCompressionSearchSpaceGenerator:
    """Collects algorithms with their spaces of config lists."""

    def __init__(self) -> None:
        self.algorithms: list[dict[str, Any]] = []

    def add_config(self, algorithm: str, config_list: list[dict[str, Any]], **parameters: Any) -> None:
        """Add an algorithm to choose from.

        Args:
            algorithm: the name of a pruner or quantizer, the seeds' names included.
            config_list: as for ``fxcompress.compile``; any value may be a range.
            parameters: further arguments of the algorithm's class, likewise.

        Raises:
            ConfigError: naming algorithm, entry and key, what was expected and what was given.
        """
        entry = {"_name": algorithm, "config_list": config_list, "parameters": parameters}
        self.algorithms += checked([copy.deepcopy(entry)])

    def dumps(self) -> dict[str, Any]:
        """The space as one nested choice: first pruner or quantizer, then the algorithm."""
        groups = {kind: [e for e in self.algorithms if algorithm(e["_name"]).kind == kind] for kind in _KINDS}
        options = [
            {"_name": kind, "algorithm_name": {"_type": "choice", "_value": copy.deepcopy(entries)}}
            for kind, entries in groups.items()
            if entries
        ]
        return {"compressor_type": {"_type": "choice", "_value": options}}

    def loads(self, search_space: Mapping[str, Any]) -> None:
        """Take over what ``dumps`` gave, here or in the seeds.

        Raises:
            ConfigError: if it is no such thing.
        """
        self.algorithms = algorithms_of(search_space)


def read_space(path: Path) -> dict[str, Any]:
    """The search space in a JSON file.

    Raises:
        ConfigError: if it holds none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"search space {path}: expected JSON ({error})") from error
    algorithms_of(value)
    return dict(value)


def algorithms_of(space: Any) -> list[dict[str, Any]]:
    """The algorithms of a dumped space, in ``add_config``'s form, checked.

    Raises:
        ConfigError: naming the place, what was expected and what was given.
    """
    try:
        groups = space["compressor_type"]["_value"]
        entries = [entry for group in groups for entry in group["algorithm_name"]["_value"]]
    except (TypeError, KeyError) as error:
        raise ConfigError(
            "search space: expected what AutoCompressionSearchSpaceGenerator.dumps() gives, a dict with "
            f"compressor_type → _value → algorithm_name → _value, got {_short(space)}"
        ) from error
    if not entries:
        raise ConfigError("search space: expected at least one algorithm, got none; call add_config")
    return checked([_unflattened(copy.deepcopy(entry)) for entry in entries])


def checked(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries, once every range and every key of a config list has been looked at."""
    for entry in entries:
        name = entry.get("_name") if isinstance(entry, dict) else entry
        kind = algorithm(name).kind
        where = f"search space: {kind} {name!r}"
        config_list = entry.get("config_list")
        if not isinstance(config_list, list) or not config_list:
            raise ConfigError(f"{where}: config_list: expected a non-empty list, got {_short(config_list)}")
        for path, value in _ranges(entry, ""):
            _check_range(f"{where}: {path}", value)
        try:
            for place in (0, -1):
                parse(_sampled(_Edge(place), "", config_list))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    return entries


def drawn(trial: Draw, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """One algorithm with values in the place of ranges: ``algorithm``, ``config_list``, ``parameters``."""
    labels = _labels([entry["_name"] for entry in entries])
    label = trial.suggest_categorical("algorithm", labels) if len(labels) > 1 else labels[0]
    entry = entries[labels.index(label)]
    return {
        "algorithm": entry["_name"],
        "config_list": _sampled(trial, label, entry["config_list"]),
        "parameters": _sampled(trial, label, entry.get("parameters", {})),
    }


def _sampled(trial: Draw, path: str, value: Any) -> Any:
    if isinstance(value, dict) and "_type" in value:
        return _number(trial, path, value["_type"], value["_value"])
    if isinstance(value, dict):
        return {k: _sampled(trial, f"{path}/{k}", v) for k, v in value.items() if k != "_name"}
    if isinstance(value, list):
        return [_sampled(trial, f"{path}/{index}", item) for index, item in enumerate(value)]
    return value


def _number(trial: Draw, path: str, kind: str, value: list[Any]) -> Any:
    if kind == "choice":
        labels = _labels(
            [option.get("_name", option) if isinstance(option, dict) else option for option in value]
        )
        label = trial.suggest_categorical(path, labels) if len(labels) > 1 else labels[0]
        return _sampled(trial, f"{path}/{label}", value[labels.index(label)])
    if kind == "randint":
        return trial.suggest_int(path, value[0], value[1] - 1)
    low, high = value[:2]
    drawn = trial.suggest_float(path, low, high, log="log" in kind)
    if not kind.startswith("q"):
        return drawn
    return min(max(round(drawn / value[2]) * value[2], low), high)


def _labels(options: list[Any]) -> list[Any]:
    """What Optuna stores of options: themselves where they are plain and differ, or else words."""
    plain = all(isinstance(option, (str, int, float)) or option is None for option in options)
    if plain and len({(type(o), o) for o in options}) == len(options) == len(set(options)):
        return options
    words = [option if isinstance(option, str) else json.dumps(option) for option in options]
    return [w if words.count(w) == 1 else f"{w} ({1 + words[:i].count(w)})" for i, w in enumerate(words)]


def _ranges(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict with ``_type`` or ``_value``, with its place."""
    if isinstance(value, dict):
        if "_type" in value or "_value" in value:
            yield path, value
        for key, item in value.items():
            yield from _ranges(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _ranges(item, f"{path}[{index}]")


def _check_range(where: str, given: dict[str, Any]) -> None:
    kind, value = given.get("_type"), given.get("_value")
    if kind not in _SIZES:
        hint = did_you_mean(str(kind), _SIZES) or f"; expected one of {', '.join(_SIZES)}"
        raise ConfigError(f"{where}: _type: got {kind!r}{hint}")
    size = _SIZES[kind]
    if not isinstance(value, list) or not value or (size is not None and len(value) != size):
        expected = {None: "a list of options", 2: "[low, high]", 3: "[low, high, q]"}[size]
        raise ConfigError(f"{where}: _value: expected {expected} for {kind}, got {_short(value)}")
    if size is None:
        return
    whole = kind == "randint"
    types = (int,) if whole else (int, float)
    if any(isinstance(x, bool) or not isinstance(x, types) for x in value):
        numbers = "whole numbers" if whole else "numbers"
        raise ConfigError(f"{where}: _value: expected {numbers} for {kind}, got {value}")
    low, high = value[:2]
    if not low < high or ("log" in kind and low <= 0) or (size == 3 and value[2] <= 0):
        above = "0 < " if "log" in kind else ""
        raise ConfigError(
            f"{where}: _value: expected {above}low < high{' and q > 0' * (size == 3)}, got {value}"
        )


class _Edge:
    """Draws the first or the last of everything."""

    def __init__(self, place: int) -> None:
        self.place = place

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The first or the last."""
        return choices[self.place]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """The lowest or the highest."""
        return (low, high)[self.place]

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """The lowest or the highest."""
        return (low, high)[self.place]


def _unflattened(entry: Any) -> Any:
    """An entry in which the seeds wrote paths as keys: ``config_list::Conv2d:Linear::name::sparsity``."""
    if not isinstance(entry, dict) or "config_list" in entry:
        return entry
    scopes: dict[tuple[str, ...], dict[str, Any]] = {}
    parameters: dict[str, Any] = {}
    for key, value in entry.items():
        first, *scope = key.split("::")
        if first == "config_list" and len(scope) in (3, 4):
            names = ("quant_types", "op_types", "op_names")[-len(scope) + 1 :]
            fields = {n: s.split(":") for n, s in zip(names, scope, strict=False) if s}
            scopes.setdefault(tuple(scope[:-1]), fields)[scope[-1]] = value
        elif first == "parameter" and len(scope) == 1:
            parameters[scope[0]] = value
    return {"_name": entry.get("_name"), "config_list": list(scopes.values()), "parameters": parameters}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
