"""What a speedup gained, layer by layer, and what it had to leave, with the reason.

``print(small.report)`` shows the table; ``to_dict`` and ``to_json`` give the same facts to programs.
"""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fxcompress.errors import SpeedupError
from fxcompress.graph.cost import (
    Call,
    Latency,
    MacCount,
    as_call,
    compare_latency,
    count_bytes,
    count_parameters,
    evaluating,
)
from fxcompress.graph.module import CompiledModule
from fxcompress.graph.weightless import Weightless
from fxcompress.passes.insert_masks import mask_names
from fxcompress.passes.remove_masks import remove_masks

Shape = tuple[int, ...]


class Kept(NamedTuple):
    """Channels that a mask asked for and that stayed: at which node, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Change:
    """An amount before and after the speedup."""

    before: int
    after: int

    @property
    def removed(self) -> float:
        """The fraction removed, 0 when there was nothing."""
        return 1 - self.after / self.before if self.before else 0.0


@dataclass(frozen=True)
class LayerChange:
    """One layer's weight (or one free parameter): its shape before and after; ``None`` where it is absent.

    ``parameters``: elements of all of the layer's own parameters. ``channels``: how many its output has;
    ``None`` where its class does not say.
    """

    name: str
    type: str
    before: Shape | None
    after: Shape | None
    parameters: Change = Change(0, 0)
    channels: Change | None = None


class Subjects(NamedTuple):
    """The modules that a report is about, ``None`` where one is gone, and the call both accept."""

    before: nn.Module | None
    after: nn.Module | None
    inputs: Call


@dataclass(frozen=True)
class Report:
    """The effect of one speedup.

    Attributes:
        parameters: number of elements, a shared parameter counted once.
        bytes: stored size of parameters and buffers, without masks.
        layers: every layer with a weight, in the order of the model, changed or not.
        kept: what a mask asked for and could not be removed, with the reason.
        notes: one-line remarks of the capture.
        latency: seconds per forward pass, ``None`` until ``measure_latency`` was asked for.
    """

    parameters: Change
    bytes: Change
    layers: tuple[LayerChange, ...]
    kept: tuple[Kept, ...]
    notes: tuple[str, ...]
    latency: tuple[Latency, Latency] | None = None
    _subject: _Subject | None = field(default=None, repr=False, compare=False)

    @property
    def subjects(self) -> Subjects | None:
        """The modules compared, as long as they are alive; ``None`` of a report that was made without any."""
        return self._subject.alive() if self._subject else None

    @property
    def macs(self) -> Change | None:
        """Multiply-accumulates per example, counted when first asked for.

        ``None`` where shapes depend on tensor values, or when there are no modules to count.
        """
        counts = self._subject.macs() if self._subject else None
        return Change(counts[0].total, counts[1].total) if counts else None

    @property
    def macs_by_layer(self) -> Mapping[str, Change]:
        """Multiply-accumulates per example of every layer (or graph node outside any layer) that has some."""
        counts = self._subject.macs() if self._subject else None
        before, after = (count.by_layer for count in counts) if counts else ({}, {})
        names = dict.fromkeys([*before, *after])
        return {name: Change(before.get(name, 0), after.get(name, 0)) for name in names}

    def measure_latency(
        self, before: nn.Module | None = None, after: nn.Module | None = None, *, rounds: int = 20
    ) -> Report:
        """Return this report with ``latency`` measured on the example inputs, the two modules interleaved.

        Before is the dense model: masks, which cost time of their own, are taken out of a compiled module.

        Args:
            before: the module before the speedup; needed only when it is no longer alive.
            after: the module after the speedup; likewise.
            rounds: timed calls per module.

        Raises:
            SpeedupError: a module is gone and was not given.
        """
        if self._subject is None:
            raise SpeedupError("measure_latency: this report knows no modules; make it with make_report(...)")
        return replace(self, latency=self._subject.latency(before, after, rounds))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready dicts, lists, strings and numbers."""
        amounts = {"parameters": self.parameters, "macs": self.macs, "bytes": self.bytes}
        result: dict[str, Any] = {name: change and _change_dict(change) for name, change in amounts.items()}
        if self.latency is not None:
            names = ("before", "after")
            result["latency"] = {n: value.to_dict() for n, value in zip(names, self.latency, strict=True)}
        macs = self.macs_by_layer
        result["layers"] = [
            {
                "name": layer.name,
                "type": layer.type,
                "before": _as_list(layer.before),
                "after": _as_list(layer.after),
                "channels": layer.channels and _change_dict(layer.channels),
                "parameters": _change_dict(layer.parameters),
                "macs": _change_dict(macs[layer.name]) if layer.name in macs else None,
            }
            for layer in self.layers
        ]
        result["kept"] = [kept._asdict() for kept in self.kept]
        result["notes"] = list(self.notes)
        return result

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return ``to_dict()`` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_text(self, *, width: int = 100, rows: int = 40) -> str:
        """Return plain text of at most ``width`` columns: totals, changed layers, what stayed, notes.

        ``rows`` limits each list; what is left out is counted in the last line.
        """
        parts = [_totals_table(self)]
        changed = [layer for layer in self.layers if layer.before != layer.after]
        if changed:
            parts.append(_layers_table(changed, len(self.layers), rows))
        if self.kept:
            parts.append(_kept_table(self.kept, rows))
        console = Console(
            file=io.StringIO(), width=width, color_system=None, legacy_windows=False, emoji=False
        )
        for part in parts:
            console.print(part)
            console.print()
        for note in self.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        written = console.file
        text = written.getvalue() if isinstance(written, io.StringIO) else ""
        return "\n".join(line.rstrip() for line in text.rstrip().splitlines())

    def __str__(self) -> str:
        return self.to_text()


def make_report(
    before: fx.GraphModule,
    after: fx.GraphModule,
    inputs: Any,
    kept: Iterable[tuple[str, str]] = (),
    notes: Iterable[str] = (),
) -> Report:
    """Compare a masked module with its speedup.

    Keeps neither module alive and counts no MACs yet: both are done when the report is asked.

    Args:
        before: the module with masks.
        after: the small module.
        inputs: what both accept: a tensor, a tuple of arguments, a dict of keywords, or ``(args, kwargs)``.
        kept: ``(node name, reason)`` for everything a mask asked for and that stayed.
        notes: one-line remarks of the capture.
    """
    return Report(
        parameters=Change(count_parameters(before), count_parameters(after)),
        bytes=Change(count_bytes(before), count_bytes(after)),
        layers=tuple(_layer_changes(before, after)),
        kept=tuple(Kept(*pair) for pair in kept),
        notes=tuple(notes),
        _subject=_Subject(before, after, inputs),
    )


class _Subject:
    """The two modules a report is about: weakly, and as weightless copies until their MACs are counted."""

    def __init__(self, before: nn.Module, after: nn.Module, inputs: Any) -> None:
        self._inputs = as_call(inputs)
        self._alive: tuple[Callable[[], nn.Module | None], ...] = (weakref.ref(before), weakref.ref(after))
        self._weightless = (Weightless(before), Weightless(after))
        self._macs: tuple[MacCount, MacCount] | None = None
        self._counted = False

    def alive(self) -> Subjects:
        before, after = (reference() for reference in self._alive)
        return Subjects(before, after, self._inputs)

    def macs(self) -> tuple[MacCount, MacCount] | None:
        if not self._counted:
            try:
                before, after = (module.macs(self._inputs) for module in self._weightless)
            except (DynamicOutputShapeException, DataDependentOutputException):
                self._macs = None
            else:
                self._macs = before, after
            self._counted, self._weightless = True, ()  # type: ignore[assignment]
        return self._macs

    def latency(
        self, before: nn.Module | None, after: nn.Module | None, rounds: int
    ) -> tuple[Latency, Latency]:
        modules: dict[str, nn.Module] = {}
        for name, given, alive in zip(("before", "after"), (before, after), self._alive, strict=True):
            module = given if given is not None else alive()
            if module is None:
                raise SpeedupError(
                    f"measure_latency: the module {name} the speedup no longer exists; expected it alive or "
                    f"given: report.measure_latency({name}=module)"
                )
            modules[name] = module
        modules["before"] = dense_of(modules["before"])
        args, kwargs = self._inputs
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for module in modules.values():
                stack.enter_context(evaluating(module))
            calls = {name: partial(module, *args, **kwargs) for name, module in modules.items()}
            result = compare_latency(calls, rounds=rounds)
        return result["before"], result["after"]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Subject:
        return self  # what was reported does not change when the module is copied

    def __getstate__(self) -> dict[str, Any]:
        gone = (_gone, _gone)
        return {
            "_inputs": self._inputs,
            "_alive": gone,
            "_weightless": (),
            "_macs": self.macs(),
            "_counted": True,
        }


def dense_of(module: nn.Module) -> nn.Module:
    """A masked module without its masks, any other as it is."""
    if isinstance(module, CompiledModule) and mask_names(module):
        return remove_masks(module)
    return module


def _gone() -> nn.Module | None:
    """The reference of an unpickled report: its modules were never here."""
    return None


def _layer_changes(before: nn.Module, after: nn.Module) -> Iterator[LayerChange]:
    """One row per layer with a ``weight`` and per parameter that is read without a layer."""
    old, new = _rows(before), _rows(after)
    for name in dict.fromkeys([*old, *new]):
        first, last = old.get(name, _ABSENT), new.get(name, _ABSENT)
        widths = first.channels, last.channels
        channels = None if widths[0] is None or widths[1] is None else Change(widths[0], widths[1])
        parameters = Change(first.parameters, last.parameters)
        yield LayerChange(name, last.type or first.type, first.shape, last.shape, parameters, channels)


class _Row(NamedTuple):
    """One side of a ``LayerChange``."""

    type: str
    shape: Shape | None
    parameters: int
    channels: int | None


_ABSENT = _Row("", None, 0, 0)


def _rows(module: nn.Module) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for prefix, owner in module.named_modules():
        own = {name: parameter for name, parameter in owner._parameters.items() if parameter is not None}
        for name, parameter in own.items():
            shape = tuple(parameter.shape)
            if name == "weight" and prefix:
                count = sum(other.numel() for other in own.values())
                rows[prefix] = _Row(owner._get_name(), shape, count, _channels(owner, shape))
            elif "weight" not in owner._parameters:
                rows[f"{prefix}.{name}".removeprefix(".")] = _Row("Parameter", shape, parameter.numel(), None)
    return rows


_CHANNELS = ("out_channels", "out_features", "embedding_dim", "nf")
"""Attributes that say how many channels a layer's output has."""


def _channels(layer: nn.Module, weight: Shape) -> int | None:
    """By the layer's attributes; a weight of one dimension scales channels."""
    if len(weight) == 1:
        return weight[0]
    found = (getattr(layer, name, None) for name in _CHANNELS)
    return next((value for value in found if isinstance(value, int)), None)


def _change_dict(change: Change) -> dict[str, float]:
    return {"before": change.before, "after": change.after, "removed": round(change.removed, 6)}


def _as_list(shape: Shape | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _table(title: str, *columns: str) -> Table:
    """A table whose first column may fold; numbers are right-aligned by the caller's column name."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        right = column in ("before", "after", "removed")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    return table


def _totals_table(report: Report) -> Table:
    table = _table("fxcompress report", "", "before", "after", "removed")
    amounts = {"parameters": report.parameters, "MACs per example": report.macs, "bytes": report.bytes}
    for name, change in amounts.items():
        if change is None:
            table.add_row(name, "-", "-", "depends on values")
        else:
            table.add_row(name, f"{change.before:,}", f"{change.after:,}", f"{change.removed:.1%}")
    if report.latency is not None:
        old, new = (1e3 * latency.median for latency in report.latency)
        table.add_row(
            "latency, median ms",
            f"{old:.2f}",
            f"{new:.2f}",
            f"{1 - report.latency[1].ratio_to(report.latency[0]):.1%}",
        )
    return table


def _layers_table(changed: Sequence[LayerChange], total: int, rows: int) -> Table:
    table = _table(f"{len(changed)} of {total} layers changed", "layer", "type", "before", "after")
    for layer in changed[:rows]:
        table.add_row(
            escape(layer.name), escape(layer.type), _shape_text(layer.before), _shape_text(layer.after)
        )
    if len(changed) > rows:
        table.add_row(f"and {len(changed) - rows} more", "", "", "")
    return table


def _kept_table(kept: Sequence[Kept], rows: int) -> Table:
    table = _table(f"{len(kept)} masked but kept", "node", "reason")
    for item in kept[:rows]:
        table.add_row(escape(item.node), escape(item.reason))
    if len(kept) > rows:
        table.add_row(f"and {len(kept) - rows} more", "")
    return table


def _shape_text(shape: Shape | None) -> str:
    return "-" if shape is None else "×".join(map(str, shape)) or "scalar"
