"""The config list as typed, frozen entries; every malformed input is one ``ConfigError``.

``[{"op_types": ["Conv2d"], "sparsity": 0.5}]`` -> ``(Entry(index=0, op_types=("Conv2d",), sparsity=0.5),)``.
Nothing here looks at a model: what the names select is decided in ``select``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError

from fxcompress.config import values
from fxcompress.config.registry import known_options, known_pruners, known_quantizers
from fxcompress.config.values import Granularity, PerType, near, shown
from fxcompress.errors import ConfigError

SCOPE_KEYS = ("op_types", "op_names", "op_names_re")
EXCLUDE_KEYS = ("exclude_op_types", "exclude_op_names", "exclude_op_names_re")
SCHEDULE_KEYS = (
    "initial_sparsity", "final_sparsity", "start_epoch", "end_epoch", "frequency", "prune_iterations",
)  # fmt: skip
PRUNING_KEYS = (
    "pruner", "sparsity", "total_sparsity", "max_sparsity_per_layer", "granularity", *SCHEDULE_KEYS,
)  # fmt: skip
QUANT_KEYS = (
    "quantizer", "quant_types", "quant_bits", "quant_dtype", "quant_scheme", "quant_scale",
    "quant_start_step",
)  # fmt: skip
KEYS = (*SCOPE_KEYS, "exclude", *EXCLUDE_KEYS, *PRUNING_KEYS, *QUANT_KEYS)

# Keys of other tools whose nearest spelling here would mean something else.
_RENAMED = {
    "sparsity_per_layer": "sparsity",
    "sparse_ratio": "sparsity",
    "op_partial_names": "op_names",
    "exclude_op_partial_names": "exclude_op_names",
}

_EITHER_OR = (
    (
        "sparsity",
        "total_sparsity",
        "keep sparsity for one fraction in every layer, total_sparsity for one ranked over all of them",
    ),
    (
        "sparsity",
        "max_sparsity_per_layer",
        "max_sparsity_per_layer limits total_sparsity: leave it out, or use total_sparsity",
    ),
    ("sparsity", "final_sparsity", "they mean the same to a schedule: keep final_sparsity"),
    (
        "total_sparsity",
        "final_sparsity",
        "total_sparsity is itself the goal of a schedule: leave final_sparsity out",
    ),
    (
        "final_sparsity",
        "max_sparsity_per_layer",
        "max_sparsity_per_layer limits total_sparsity: leave it out, or use total_sparsity",
    ),
)

_Names = Annotated[tuple[str, ...], PlainValidator(values.names)]
_Patterns = Annotated[tuple[str, ...], PlainValidator(values.patterns)]
_Fraction = Annotated[float | None, PlainValidator(values.fraction)]


class Entry(BaseModel):
    """One checked entry of a config list. A key that was not given has its default and is not in `given`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    index: int
    op_types: _Names = ()
    op_names: _Names = ()
    op_names_re: _Patterns = ()
    exclude: Annotated[bool, PlainValidator(values.flag)] = False
    exclude_op_types: _Names = ()
    exclude_op_names: _Names = ()
    exclude_op_names_re: _Patterns = ()

    pruner: Annotated[str | None, PlainValidator(values.pruner)] = None
    pruner_options: values.Options = ()
    sparsity: _Fraction = None
    total_sparsity: _Fraction = None
    max_sparsity_per_layer: Annotated[float | None, PlainValidator(values.limit)] = None
    granularity: Annotated[Granularity, PlainValidator(values.granularity)] = "default"
    initial_sparsity: _Fraction = None
    final_sparsity: _Fraction = None
    start_epoch: Annotated[int, PlainValidator(values.epoch)] = 0
    end_epoch: Annotated[int | None, PlainValidator(values.epoch)] = None
    frequency: Annotated[int, PlainValidator(values.count)] = 1
    prune_iterations: Annotated[int | None, PlainValidator(values.count)] = None

    quantizer: Annotated[str | None, PlainValidator(values.quantizer)] = None
    quantizer_options: values.Options = ()
    quant_types: Annotated[tuple[str, ...], PlainValidator(values.quant_types)] = ()
    quant_bits: Annotated[PerType[int] | None, PlainValidator(values.quant_bits)] = None
    quant_dtype: Annotated[PerType[str] | None, PlainValidator(values.quant_dtype)] = None
    quant_scheme: Annotated[PerType[str] | None, PlainValidator(values.quant_scheme)] = None
    quant_scale: Annotated[PerType[str] | None, PlainValidator(values.quant_scale)] = None
    quant_start_step: Annotated[int, PlainValidator(values.step)] = 0

    @property
    def label(self) -> str:
        """``config_list[i]``, as error messages name the entry."""
        return f"config_list[{self.index}]"

    @property
    def pruning(self) -> dict[str, object]:
        """The pruning keys that were given, with their checked values."""
        return self._given(PRUNING_KEYS, "pruner")

    @property
    def quantization(self) -> dict[str, object]:
        """The quantization keys that were given, with their checked values."""
        return self._given(QUANT_KEYS, "quantizer")

    def _given(self, keys: tuple[str, ...], kind: str) -> dict[str, object]:
        given = [key for key in keys if key in self.model_fields_set]
        options = [f"{kind}_options"] if getattr(self, f"{kind}_options") else []
        return {key: getattr(self, key) for key in (*given, *options)}


def parse(
    config_list: object, *, pruners: Collection[str] | None = None, quantizers: Collection[str] | None = None
) -> tuple[Entry, ...]:
    """Check a config list and return its entries in order.

    Args:
        config_list: a non-empty list (or tuple) of dicts with the keys of `KEYS`.
        pruners: valid pruner names; the registered ones if not given.
        quantizers: likewise.

    Raises:
        ConfigError: with one line per problem: entry, key, expected, got, remedy.
    """
    expected = "config_list: expected a non-empty list of dicts"
    if not isinstance(config_list, list | tuple):
        remedy = (
            "wrap the entry in a list" if isinstance(config_list, Mapping) else "write [{'sparsity': 0.5}]"
        )
        raise ConfigError(f"{expected}, got {type(config_list).__name__} {shown(config_list)}; {remedy}")
    if not config_list:
        raise ConfigError(f"{expected}, got an empty list; add an entry such as {{'sparsity': 0.5}}")
    names = {
        "pruner": known_pruners().keys() if pruners is None else pruners,
        "quantizer": known_quantizers().keys() if quantizers is None else quantizers,
    }
    entries: list[Entry] = []
    problems: list[str] = []
    for index, raw in enumerate(config_list):
        found = _parse_entry(index, raw, names)
        if isinstance(found, Entry):
            entries.append(found)
        else:
            problems.extend(f"config_list[{index}]: {problem}" for problem in found)
    raise_problems(problems)
    return tuple(entries)


def raise_problems(problems: list[str]) -> None:
    """Raise one ``ConfigError`` that lists the problems, one line each; none is no error."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems in config_list:\n  " + "\n  ".join(problems))


def _parse_entry(index: int, raw: object, names: Mapping[str, Collection[str]]) -> Entry | list[str]:
    if not isinstance(raw, Mapping):
        return [
            f"expected a dict, got {type(raw).__name__} {shown(raw)}; write for example {{'sparsity': 0.5}}"
        ]
    known = {key: value for key, value in raw.items() if key in KEYS}
    problems = [_unknown_key(key) for key in raw if key not in KEYS]
    for kind in [key for key in names if key in known]:
        options = functools.partial(known_options, kind)
        try:
            known[kind], known[f"{kind}_options"] = values.split_options(kind, known[kind], options)
        except ValueError as error:
            problems.append(f"{kind}: {error}")
            del known[kind]
    try:
        entry = Entry.model_validate({"index": index, **known}, context=names)
    except ValidationError as error:
        problems += [f"{e['loc'][0]}: {e['ctx']['error']}" for e in error.errors()]
        return problems + _misfits(known)
    problems += _misfits(known) + ([] if problems else _contradictions(entry))
    return problems or entry


def _unknown_key(key: object) -> str:
    if not isinstance(key, str):
        return f"{shown(key)}: expected a key that is a string, got {type(key).__name__}; quote it"
    renamed = _RENAMED.get(key)
    hint = f"; did you mean {renamed!r}?" if renamed else near(key, KEYS)
    return f"{key}: unknown key" + (hint or f"; expected one of {', '.join(KEYS)}")


def _given(raw: Mapping[str, object], keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key in raw]


def _misfits(raw: Mapping[str, object]) -> list[str]:
    """Keys that do not go together, whatever their values."""
    problems = [
        f"{one}, {other}: expected one of the two, got {shown(raw[one])} and {shown(raw[other])}; {remedy}"
        for one, other, remedy in _EITHER_OR
        if one in raw and other in raw
    ]
    effects = _given(raw, PRUNING_KEYS + QUANT_KEYS)
    if raw.get("exclude") is not True:
        return problems
    if effects:
        problems.append(
            f"exclude: expected no pruning or quantization key beside it, got {', '.join(effects)}; "
            "move these into an entry of their own, or drop exclude"
        )
    elif not _given(raw, SCOPE_KEYS):
        problems.append(
            "exclude: expected what to exclude, got no op_types, op_names or op_names_re; "
            "add for example 'op_names': ['conv1']"
        )
    return problems


def _contradictions(entry: Entry) -> list[str]:
    """Entries of valid keys and values that do nothing, or cannot do what they say."""
    if not (entry.exclude or entry.pruning or entry.quantization):
        given = ", ".join(key for key in KEYS if key in entry.model_fields_set)
        got = f"only {given}" if given else "an empty entry"
        return [
            f"expected a pruning key, a quantization key or exclude: True, got {got}; "
            "add for example 'sparsity': 0.5, 'quant_bits': 8 or 'exclude': True"
        ]
    total, most = entry.total_sparsity, entry.max_sparsity_per_layer
    if total is not None and most is not None and most < total:
        return [
            f"max_sparsity_per_layer: expected at least total_sparsity ({total}), got {most}; "
            "no layers can reach the total below it: raise it or lower total_sparsity"
        ]
    return []
