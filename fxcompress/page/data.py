"""What the report page shows, as plain figures: the page draws it, ``to_json`` gives it to programs.

Amounts are numbers of elements, multiply-accumulates per example, bytes and seconds, never texts. ``None``
stands for what is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter

from fxcompress.export.tables import writable
from fxcompress.graph.cost import Latency
from fxcompress.report import Change, Kept, Shape
from fxcompress.sqnr import SqnrReport

Number = int | float


@dataclass(frozen=True)
class Total:
    """One row of the before/after table. ``unit``: ``""``, ``"bytes"``, ``"s"``, or ``"metric"`` for a figure
    whose difference matters, not its share."""

    name: str
    before: Number | None
    after: Number | None
    unit: str = ""


@dataclass(frozen=True)
class Amounts:
    """An amount before and after."""

    before: Number
    after: Number


def added(pairs: Iterable[Amounts | Change | None]) -> Amounts | None:
    """The sums of those that are known, ``None`` where none is."""
    known = [pair for pair in pairs if pair is not None]
    return Amounts(sum(pair.before for pair in known), sum(pair.after for pair in known)) if known else None


@dataclass(frozen=True)
class Timing:
    """Latencies of one call in a ``runtime`` (``"PyTorch"``); ``told``: of what, where and how, in words."""

    runtime: str
    before: Latency
    after: Latency
    told: str


@dataclass(frozen=True)
class Layer:
    """One layer with a weight (or one free parameter). ``latency``: median seconds."""

    name: str
    type: str
    before: Shape | None
    after: Shape | None
    parameters: Change
    channels: Change | None = None
    macs: Change | None = None
    latency: Amounts | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether its weight is a matrix or more, as a convolution's; norms, which scale and shift, are not,
        nor are free parameters such as a layer scale of shape ``C×1×1``.
        """
        sizes = self.before or self.after or ()
        return len(sizes if self.type != "Parameter" else [s for s in sizes if s > 1]) > 1


@dataclass(frozen=True)
class GraphNode:
    """``kind``: ``input``, ``output``, ``layer``, ``join`` (an operator of several values), or ``block``
    (``layers`` of them, drawn as one). ``channels`` of a layer; ``parameters`` of layers and blocks.
    ``count``: how many operators it stands for; none after of what is gone, none before of what is new."""

    name: str
    kind: str
    type: str = ""
    layers: int = 0
    channels: Change | None = None
    parameters: Change | None = None
    count: Change = field(default_factory=lambda: Change(1, 1))


Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Graph:
    """Which layer reads which ``before`` and ``after``: pairs of positions in ``nodes``, the first below the
    second; ``None`` where the module is gone."""

    nodes: tuple[GraphNode, ...]
    before: Edges | None
    after: Edges | None

    @property
    def edges(self) -> Edges:
        """Those of both."""
        return tuple(dict.fromkeys([*(self.before or ()), *(self.after or ())]))


@dataclass(frozen=True)
class FloatOperator:
    """An operator that onnxruntime runs in float, why, and what to do."""

    layer: str
    op: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Parity:
    """onnxruntime's integer kernels against exact integer arithmetic."""

    kernels: int
    values: int
    mismatches: int


@dataclass(frozen=True)
class Onnx:
    """The file that was exported. ``kernels``: integer kernel → how many; ``None`` of a float file."""

    file: str
    opset: int
    bytes: int | None
    max_relative_difference: float | None
    batches: tuple[int, ...]
    kernels: Mapping[str, int] | None
    floats: tuple[FloatOperator, ...]
    parity: Parity | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """A part that the page does not have, and how to get it."""

    part: str
    remedy: str


@dataclass(frozen=True)
class PageData:
    """Everything on the page. ``other_latency``: of the operators without weights together; ``timing``: what
    the latencies are latencies of, in sentences; ``kept``: ``None`` where there were no masks."""

    model: str
    totals: tuple[Total, ...]
    layers: tuple[Layer, ...]
    other_latency: Amounts | None
    timing: tuple[str, ...]
    kept: tuple[Kept, ...] | None
    notes: tuple[str, ...]
    graph: Graph | None
    sensitivity: Mapping[str, Mapping[float, float]] | None
    sqnr: SqnrReport | None
    onnx: Onnx | None
    missing: tuple[Missing, ...]

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the data as JSON text; infinite figures are the string ``"inf"``."""
        kept = None if self.kept is None else [item._asdict() for item in self.kept]
        return json.dumps(writable({**asdict(self), "kept": kept}), indent=indent)

    @staticmethod
    def from_json(text: str | bytes) -> PageData:
        """Read what ``to_json`` wrote.

        Raises:
            pydantic.ValidationError: naming each field that is not as it should be.
        """
        return TypeAdapter(PageData).validate_json(text)
