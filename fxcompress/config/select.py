"""Which node gets what: the entries of a config list applied in order to a list of targets.

Laws: a later entry wins, key by key; pruning keys and quantization keys do not disturb each other;
``exclude: True`` drops what earlier entries selected, and a later entry may select again.

    [{"sparsity": 0.5}, {"op_names": ["stem"], "sparsity": 0.2}, {"exclude": True, "op_names": ["head"]}]
    stem -> 0.2, head -> nothing, every other layer that the pruner supports -> 0.5
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxcompress.config.registry import DEFAULT_PRUNER, QUANTIZABLE
from fxcompress.config.schema import SCHEDULE_KEYS, Entry, raise_problems
from fxcompress.config.scope import DEFAULT, Scope, ScopeFinder, explicit_types
from fxcompress.config.settings import Merged, PruningSettings, QuantSettings
from fxcompress.config.targets import Target, nn_types, targets_of_model
from fxcompress.errors import ConfigError

__all__ = ["Deferred", "Selection", "Target", "TotalGroup", "select", "targets_of_model"]


@dataclass(frozen=True)
class Deferred:
    """A name or type in an entry with quantization keys that can only be looked up in the captured graph."""

    entry: int
    key: str
    value: str


@dataclass(frozen=True)
class TotalGroup:
    """Layers that are ranked together to reach one ``total_sparsity``: those that got it from one entry."""

    entry: int
    total_sparsity: float
    names: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """The result of `select`.

    Attributes:
        targets: what could be selected, in the given order.
        pruning: target name -> how to prune it, in target order.
        quantization: target name -> how to quantize it, in target order.
        unselected: name of every other target -> why nothing was selected.
        deferred: what remains to be looked up after capture; empty if the targets were those of a graph.
    """

    targets: tuple[Target, ...]
    pruning: Mapping[str, PruningSettings]
    quantization: Mapping[str, QuantSettings]
    unselected: Mapping[str, str]
    deferred: tuple[Deferred, ...] = ()

    @property
    def total_groups(self) -> tuple[TotalGroup, ...]:
        """The groups of layers that share a ``total_sparsity``, in entry order."""
        names: dict[int, list[str]] = {}
        for name, settings in self.pruning.items():
            if settings.total_sparsity is not None:
                names.setdefault(settings.sources["total_sparsity"], []).append(name)
        return tuple(
            TotalGroup(entry, self.pruning[members[0]].total_sparsity or 0.0, tuple(members))
            for entry, members in sorted(names.items())
        )


def select(
    entries: Sequence[Entry],
    targets: Sequence[Target],
    supported: Mapping[str, frozenset[str]],
    *,
    captured: bool = True,
) -> Selection:
    """Apply the entries in order.

    Args:
        entries: what `schema.parse` returned.
        targets: modules, and the functional nodes if the graph is known.
        supported: pruner name -> operator types it supports (`registry.known_pruners()`); may also hold
            quantizer names, whose ``default`` is `registry.QUANTIZABLE` otherwise.
        captured: False if functional nodes are not known yet. Then names in entries with quantization keys
            and without pruning keys may match nothing; they are listed in `Selection.deferred`.

    Raises:
        ConfigError: with one line per problem, if a name or type matches nothing, a pruner is put on a type
            it does not support, an entry has no effect, or nothing is selected at all.
    """
    return _Selector(targets, supported, captured=captured).run(entries)


class _Selector:
    def __init__(
        self, targets: Sequence[Target], supported: Mapping[str, frozenset[str]], *, captured: bool
    ) -> None:
        self._targets = tuple(targets)
        self._supported = supported
        self._captured = captured
        self._finder = ScopeFinder(self._targets, captured=captured)
        self._merged = {target.name: Merged() for target in targets}
        self._reasons = {target.name: "in no entry's scope" for target in targets}
        self._problems: list[str] = []
        self._deferred: list[Deferred] = []

    def run(self, entries: Sequence[Entry]) -> Selection:
        quantizes = False
        for entry in entries:
            quantizes = quantizes or bool(entry.quantization)
            functional = quantizes if entry.exclude else not entry.pruning
            scope = self._finder.find(entry, may_be_functional=functional)
            self._deferred += [Deferred(entry.index, key, value) for key, value in scope.deferred]
            self._problems += [f"{entry.label}: {problem}" for problem in scope.problems]
            self._apply(entry, scope)
        raise_problems(self._problems)
        return self._finish(entries)

    def _apply(self, entry: Entry, scope: Scope) -> None:
        """Give the entry's keys to the targets in its scope; on a problem nothing more is reported for it."""
        if scope.problems:
            return
        if entry.pruning:
            misplaced = list(dict.fromkeys(self._misplaced(entry, scope)))
            if misplaced:
                self._problems += [f"{entry.label}: {problem}" for problem in misplaced]
                return
        reached = False
        for target in self._targets:
            if target.name in scope.dropped and self._in_scope(entry, scope, target):
                self._reasons[target.name] = f"{entry.label}: {scope.dropped[target.name]}"
            elif self._in_scope(entry, scope, target):
                reached |= self._give(entry, scope, target)
        if not reached and scope.named is not None and not scope.deferred:
            self._problems.append(self._no_effect(entry, scope))

    def _give(self, entry: Entry, scope: Scope, target: Target) -> bool:
        merged = self._merged[target.name]
        if entry.exclude:
            merged.clear()
            self._reasons[target.name] = f"excluded by {entry.label}"
            return True
        reached = False
        if entry.pruning:
            pruner = entry.pruner or merged.pruner
            if self._prunable(pruner, target):
                merged.add_pruning(entry)
                reached = True
            else:
                self._reasons[target.name] = f"pruner {pruner!r} does not support {target.op_type}"
        if entry.quantization:
            quantizer = entry.quantizer or merged.quantizer
            if self._quantizable(entry, scope, quantizer, target):
                merged.add_quantization(entry)
                reached = True
            elif not entry.pruning:
                self._reasons[target.name] = f"{target.op_type} is quantized only where an entry names it"
        return reached

    def _in_scope(self, entry: Entry, scope: Scope, target: Target) -> bool:
        """Whether names and types allow the target; ``default`` allows all, support is checked later."""
        if scope.named is not None and target.name not in scope.named:
            return False
        if not entry.op_types or DEFAULT in entry.op_types:
            return True
        return any(name in target.op_types for name in entry.op_types)

    def _prunable(self, pruner: str, target: Target) -> bool:
        return not self._supported.get(pruner, frozenset()).isdisjoint(target.op_types)

    def _quantizable(self, entry: Entry, scope: Scope, quantizer: str, target: Target) -> bool:
        if target.name in scope.exact or any(name in target.op_types for name in explicit_types(entry)):
            return True
        if scope.named is not None and not entry.op_types:
            return True
        return not self._supported.get(quantizer, QUANTIZABLE).isdisjoint(target.op_types)

    def _misplaced(self, entry: Entry, scope: Scope) -> Iterator[str]:
        """Say which explicitly named types and layers the pruner does not support."""
        for name in explicit_types(entry):
            matching = [target for target in self._targets if name in target.op_types]
            for target in matching or ([Target("", (name,))] if name in nn_types() else []):
                pruner = entry.pruner or (self._merged[target.name].pruner if matching else DEFAULT_PRUNER)
                if not self._prunable(pruner, target):
                    yield self._unsupported("op_types", repr(name), pruner)
        for target in self._targets:
            if target.name in scope.exact and self._in_scope(entry, scope, target):
                pruner = entry.pruner or self._merged[target.name].pruner
                if target.name not in scope.dropped and not self._prunable(pruner, target):
                    yield self._unsupported("op_names", f"{target.name!r} ({target.op_type})", pruner)

    def _unsupported(self, key: str, what: str, pruner: str) -> str:
        types = ", ".join(sorted(self._supported.get(pruner, ()))) or "no type"
        return f"{key}: pruner {pruner!r} does not support {what}; it supports {types}: select one of these"

    def _no_effect(self, entry: Entry, scope: Scope) -> str:
        key = "op_names" if entry.op_names else "op_names_re"
        named = [target for target in self._targets if target.name in (scope.named or ())]
        found = ", ".join(f"{target.name!r} ({target.op_type})" for target in named[:3])
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        return (
            f"{entry.label}: {key}: expected a layer the entry can act on, got only {found}{more}, which "
            "op_types, exclude_op_* or the pruner leave out; name another layer or relax these keys"
        )

    def _finish(self, entries: Sequence[Entry]) -> Selection:
        pruning: dict[str, PruningSettings] = {}
        quantization: dict[str, QuantSettings] = {}
        without_amount: dict[str, PruningSettings] = {}
        for name, merged in self._merged.items():
            if settings := merged.pruning_settings():
                (without_amount if settings.goal is None else pruning)[name] = settings
            if quant := merged.quant_settings():
                quantization[name] = quant
        for name, settings in without_amount.items():
            given = ", ".join(f"{key} of config_list[{i}]" for key, i in settings.sources.items())
            self._reasons[name] = f"got {given}, but no sparsity"
        unselected = {
            name: reason
            for name, reason in self._reasons.items()
            if name not in pruning and name not in quantization
        }
        selection = Selection(self._targets, pruning, quantization, unselected, tuple(self._deferred))
        self._check_amounts(entries, pruning, without_amount)
        _check_groups(selection)
        _check_schedules(selection)
        if not (pruning or quantization or self._deferred):
            raise ConfigError(self._nothing(entries))
        return selection

    def _check_amounts(
        self,
        entries: Sequence[Entry],
        pruning: Mapping[str, PruningSettings],
        without: Mapping[str, PruningSettings],
    ) -> None:
        """Refuse an entry such as ``{"pruner": "fpgm"}`` none of whose layers gets a sparsity."""
        effective = {index for settings in pruning.values() for index in settings.sources.values()}
        idle = {index for settings in without.values() for index in settings.sources.values()} - effective
        raise_problems(
            [
                f"{entry.label}: {', '.join(entry.pruning)}: expected a sparsity for its layers, got "
                "none from any entry; add 'sparsity': 0.5 or 'total_sparsity': 0.5"
                for entry in entries
                if entry.index in idle
            ]
        )

    def _nothing(self, entries: Sequence[Entry]) -> str:
        counts = Counter(target.op_type for target in self._targets)
        layers = ", ".join(f"{count} {name}" for name, count in counts.most_common(8)) or "no layers"
        keys = sorted({key for entry in entries for key in ("op_types", "exclude") if getattr(entry, key)})
        remedy = f"check {' and '.join(keys)}" if keys else "name layers in op_types or op_names"
        return (
            f"config_list: expected at least one selected layer, got none: the model has {layers}; {remedy}"
        )


def _check_groups(selection: Selection) -> None:
    """Refuse to rank layers of different pruners together."""
    problems = []
    for group in selection.total_groups:
        first: dict[str, str] = {}
        for name in group.names:
            settings = selection.pruning[name]
            options = f" with {dict(settings.pruner_options)}" if settings.pruner_options else ""
            first.setdefault(f"{settings.pruner!r}{options}", name)
        if len(first) > 1:
            got = ", ".join(f"{pruner} for {name!r}" for pruner, name in first.items())
            problems.append(
                f"config_list[{group.entry}]: total_sparsity: expected one pruner for the layers it ranks, "
                f"got {got}; give each pruner's layers a total_sparsity of their own"
            )
    raise_problems(problems)


def refuse_schedule(selection: Selection, allowed: Collection[str], why: str) -> None:
    """Refuse keys of schedules other than ``allowed`` for a caller that does not follow them.

    Args:
        selection: what a config list selected.
        allowed: keys of `schema.SCHEDULE_KEYS`.
        why: why the others mean nothing to the caller, and what to do.

    Raises:
        ConfigError: naming entry and key.
    """
    found = {
        (index, key): None
        for settings in selection.pruning.values()
        for key, index in settings.sources.items()
        if key in SCHEDULE_KEYS and key not in allowed
    }
    raise_problems([f"config_list[{index}]: {key}: {why}" for index, key in sorted(found)])


def _check_schedules(selection: Selection) -> None:
    """Refuse schedules that run backwards; keys of one layer may come from several entries."""
    problems: dict[str, None] = {}
    for name, settings in selection.pruning.items():
        goal, end = settings.goal or 0.0, settings.end_epoch
        where = settings.sources
        if settings.initial_sparsity > goal:
            problems[
                f"config_list[{where['initial_sparsity']}]: initial_sparsity: expected at most the final one "
                f"({goal:g} for {name!r}), got {settings.initial_sparsity:g}; lower it"
            ] = None
        if end is not None and end <= settings.start_epoch:
            problems[
                f"config_list[{where['end_epoch']}]: end_epoch: expected more than start_epoch "
                f"({settings.start_epoch} for {name!r}), got {end}; raise it"
            ] = None
    raise_problems(list(problems))
