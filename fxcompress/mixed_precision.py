"""Mixed precision: bits for every layer so that the model fits into a number of bytes with the least noise.

found = mixed_precision(model, [{"quant_bits": 8, "quantizer": "ptq"}], x, data=batches, bytes=0.15)
print(found)                                      # what was measured, and what was chosen
quantized = fxcompress.compile(model, found.config_list, x, data=batches)

Every tensor is rounded alone to each number of bits, and the noise at the model's output measured; the bits
are the solution of a knapsack problem whose noises add up (Pandey et al., A Practical Mixed Precision
Algorithm for Post-Training Quantization, 2023, for the measure; Yao et al., HAWQ-V3, ICML 2021, for the
sum under a budget). That they add up holds for small noise: the result is measured as a whole too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from torch import nn

from fxcompress.compiler import compile as compile_model
from fxcompress.config import known_pruners, known_quantizers, parse, select, targets_of_graph
from fxcompress.config.values import QUANT_TYPES
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.export.tables import printed, read_curves, text_table, writable, write_curves
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import count_bytes
from fxcompress.graph.module import CompiledModule
from fxcompress.quantization.bit_allocation import Choice, allocate
from fxcompress.quantization.layerwise import leaves_of
from fxcompress.quantization.noise import decibels, errors_at_output, measuring
from fxcompress.quantization.storage import RoundedTensor, count_stored_bytes, rounded_tensors

BITS = (8, 4, 2)


@dataclass(frozen=True)
class TensorBits:
    """A tensor (or several that are rounded as one).

    Attributes:
        name: ``conv1.weight``, say.
        bits: those chosen.
        sqnr: by bits the signal to noise ratio at the model's output, in decibels, it alone rounded.
        bytes: by bits what it takes, scales included; of activations for one example.
    """

    name: str
    bits: int
    sqnr: Mapping[int, float]
    bytes: Mapping[int, float]


@dataclass(frozen=True)
class MixedPrecision:
    """The bits that were chosen.

    Attributes:
        config_list: the one that was given, and entries with the bits.
        rows: what was measured.
        bytes: of the model at these bits, with the activations whose bits were chosen; at most ``budget``.
        budget: in bytes.
        expected: decibels at the output, were all noises to add up; ``bound``: no choice is expected to have
            more; ``sqnr``: as measured with all of these tensors rounded together.
    """

    config_list: list[dict[str, Any]]
    rows: tuple[TensorBits, ...]
    bytes: float
    budget: float
    expected: float
    bound: float
    sqnr: float

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return everything as JSON text; an infinite figure is the string ``"inf"``."""
        return json.dumps(writable(asdict(self)), indent=indent)

    def __str__(self) -> str:
        """A table of what was measured, the tensors with the fewest bits first."""
        every = sorted({bits for row in self.rows for bits in row.sqnr}, reverse=True)
        title = (
            f"{self.bytes:,.0f} of {self.budget:,.0f} bytes, {self.sqnr:.1f} dB at the output (expected "
            f"{self.expected:.1f}, at best {self.bound:.1f})"
        )
        shown = text_table("tensor", "bits", "bytes", *(f"dB at {bits}" for bits in every))
        for row in sorted(self.rows, key=lambda r: r.bits):
            figures = [f"{row.sqnr[bits]:.1f}" for bits in every]
            shown.add_row(escape(row.name), str(row.bits), f"{row.bytes[row.bits]:,.0f}", *figures)
        return printed(title, shown)


def mixed_precision(
    model: nn.Module,
    config_list: list[dict[str, Any]],
    example_inputs: Any = None,
    *,
    data: Iterable[Any],
    bytes: float,
    bits: Sequence[int] = BITS,
    quant_types: Sequence[str] = ("weight",),
    file: str | os.PathLike[str] | None = None,
) -> MixedPrecision:
    """Choose the bits of each layer that the config list quantizes.

    Costs one compilation per number of bits, and for each tensor the part of the model behind it. Bytes are
    those of packed integers: onnxruntime keeps the weights of convolutions in 8 bits whatever their number,
    and of linear layers in 4 where the quantizer is ``weight_only`` or ``gptq``.

    Args:
        model: as for ``compile``; nothing of it changes.
        config_list: as for ``compile``; says which layers are quantized, and by which quantizer.
        example_inputs: as for ``compile``.
        data: batches to calibrate and to measure on (a collection: it is read several times).
        bytes: the budget: below 1 as a share of the float model's bytes, from 1 on a number of bytes.
        bits: those to choose from.
        quant_types: the tensors whose bits are chosen; others keep theirs. With ``input`` or ``output`` the
            bytes of these activations, for one example, count as well.
        file: a CSV file that holds what has been measured: read at the start if it exists, replaced when all
            tensors were measured at one number of bits.

    Raises:
        ConfigError: for a budget, bits or types that are none, a config list that quantizes nothing, or
            activations without ``quant_types`` in the config list.
        FxcompressError: if the budget cannot be met; the message says how far it goes.
    """
    _check(bytes, bits, quant_types)
    dense = capture(model, example_inputs)
    plan = _Plan(dense, config_list, tuple(quant_types), list(data))
    curves = plan.measure(sorted(set(bits), reverse=True), None if file is None else Path(file))
    whole = count_bytes(dense)
    budget = bytes * whole if bytes < 1 else float(bytes)
    choices = [[Choice(c.bytes[b], 10 ** (-c.sqnr[b] / 10)) for b in c.sqnr] for c in curves.values()]
    least = plan.fixed_bytes + sum(min(choice.cost for choice in of) for of in choices)
    if least > budget:
        raise FxcompressError(
            f"mixed_precision: bytes={bytes}: even with the fewest bits {least:,.0f} bytes are left "
            f"({least / whole:.1%} of the float model); offer fewer bits, select more layers, or raise the "
            "budget (fxcompress.explain shows what is selected)"
        )
    found = allocate(choices, budget - plan.fixed_bytes)
    rows = {name: c.chosen(index) for (name, c), index in zip(curves.items(), found.chosen, strict=True)}
    entries = plan.entries({name: row.bits for name, row in rows.items()})
    return MixedPrecision(
        config_list=[*config_list, *entries],
        rows=tuple(rows.values()),
        bytes=plan.fixed_bytes + found.cost,
        budget=budget,
        expected=decibels(found.noise),
        bound=decibels(found.bound),
        sqnr=plan.together(entries),
    )


def _check(bytes: float, bits: Sequence[int], quant_types: Sequence[str]) -> None:
    if isinstance(bytes, bool) or not isinstance(bytes, int | float) or not bytes > 0:
        raise ConfigError(
            f"mixed_precision: bytes: expected a share in (0, 1) or a number of bytes, got {bytes!r}; 0.25 "
            "leaves a quarter"
        )
    wrong = [b for b in bits if isinstance(b, bool) or not isinstance(b, int) or not 1 <= b <= 32]
    if wrong or not bits:
        raise ConfigError(
            f"mixed_precision: bits: expected integers from 1 to 32, got {list(bits)!r}; try {BITS}"
        )
    if not quant_types or not set(quant_types) <= set(QUANT_TYPES):
        raise ConfigError(
            f"mixed_precision: quant_types: expected some of {', '.join(QUANT_TYPES)}, got "
            f"{list(quant_types)!r}"
        )


@dataclass
class _Curve:
    """One ``TensorBits`` while it is measured."""

    name: str
    sqnr: dict[int, float]
    bytes: dict[int, float]

    def chosen(self, index: int) -> TensorBits:
        return TensorBits(self.name, list(self.sqnr)[index], self.sqnr, self.bytes)


@dataclass
class _Item:
    """Tensors whose bits are one choice: ``members`` say them in a config list, ``quantizers`` round."""

    members: dict[tuple[str, str], None]
    quantizers: list[str]
    bytes: float

    @property
    def is_weight(self) -> bool:
        return next(iter(self.members))[1] == "weight"

    @property
    def name(self) -> str:
        return ".".join(part for part in next(iter(self.members)) if part)


class _Plan:
    """The layers that a config list quantizes, and what their tensors lose and take at given bits."""

    def __init__(
        self,
        dense: CompiledModule,
        config_list: list[dict[str, Any]],
        quant_types: tuple[str, ...],
        batches: list[Any],
    ) -> None:
        self._dense, self._config_list, self._batches = dense, config_list, batches
        self._types = quant_types
        known = {**known_pruners(), **known_quantizers()}
        self._settings = dict(select(parse(config_list), targets_of_graph(dense), known).quantization)
        if not self._settings:
            raise ConfigError(
                "mixed_precision: config_list: expected an entry that quantizes, got none; add "
                "{'quant_bits': 8, 'quantizer': 'ptq'}"
            )
        loose = next((n for n, s in self._settings.items() if "quant_types" not in s.sources), None)
        if loose is not None and set(quant_types) != {"weight"}:
            raise ConfigError(
                f"mixed_precision: quant_types={list(quant_types)}: expected quant_types in the config entry "
                f"of {loose!r} too, got none: operators between layers would join with bits of their own; "
                "add 'quant_types': ['weight', 'input', 'output'] to it"
            )
        self._items: dict[str, _Item] = {}
        self.fixed_bytes = 0.0
        """What is left of the model without the tensors whose bits are chosen."""

    def measure(self, bits: Sequence[int], file: Path | None) -> dict[str, _Curve]:
        """Every tensor at every number of bits, alone."""
        curves: dict[str, _Curve] = {}
        known: dict[str, dict[float, float]] = {}
        everywhere = [(layer, kind) for layer in self._settings for kind in self._types]
        for b in bits:
            module = self._compiled(self._entries_of(dict.fromkeys(everywhere, b)))
            self._items = self._find(module)
            if not self._items:
                raise ConfigError(
                    f"mixed_precision: quant_types={list(self._types)}: expected tensors that the config "
                    "list rounds, got none of these; change its quant_types or these"
                )
            weights = sum(i.bytes for i in self._items.values() if i.is_weight)
            self.fixed_bytes = count_stored_bytes(module) - weights
            if not curves and file is not None and file.exists():
                known = read_curves(file, self._items, "mixed precision")
            missing = {n: i.quantizers for n, i in self._items.items() if b not in known.get(n, {})}
            with measuring(module):
                ratios = errors_at_output(
                    module, leaves_of(module, self._batches), missing, f"SQNR at {b} bits"
                )
            for name, ratio in ratios.items():
                known.setdefault(name, {})[float(b)] = ratio.sqnr
            if file is not None:
                write_curves(file, known)
            for name, item in self._items.items():
                curve = curves.setdefault(name, _Curve(name, {}, {}))
                curve.sqnr[b], curve.bytes[b] = known[name][b], item.bytes
        self._refuse_silence(curves)
        return curves

    def _refuse_silence(self, curves: Mapping[str, _Curve]) -> None:
        for curve in curves.values():
            if any(math.isnan(ratio) or ratio == -math.inf for ratio in curve.sqnr.values()):
                raise FxcompressError(
                    f"mixed_precision: {curve.name}: the model's output on data is zero or not finite, so "
                    "there is no ratio of signal to noise; give other batches"
                )

    def entries(self, bits: Mapping[str, int]) -> list[dict[str, Any]]:
        """Config entries for these bits, by the name of the tensor."""
        return self._entries_of({m: b for name, b in bits.items() for m in self._items[name].members})

    def together(self, entries: list[dict[str, Any]]) -> float:
        """The SQNR at the output with all tensors whose bits were chosen rounded."""
        module = self._compiled(entries)
        names = [name for item in self._find(module).values() for name in item.quantizers]
        with measuring(module):
            found = errors_at_output(module, leaves_of(module, self._batches), {"": names}, "SQNR")
        return found[""].sqnr

    def _compiled(self, entries: list[dict[str, Any]]) -> CompiledModule:
        return compile_model(self._dense, [*self._config_list, *entries], data=self._batches)

    def _entries_of(self, bits: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
        """One entry for all layers of the same bits; what is not among ``bits`` stays as it is."""
        wanted = {layer: asdict(settings.quant_bits) for layer, settings in self._settings.items()}
        for (layer, kind), b in bits.items():
            wanted[layer][kind] = b
        layers: dict[tuple[int, ...], list[str]] = {}
        for layer, per_type in wanted.items():
            layers.setdefault(tuple(per_type.values()), []).append(layer)
        return [{"op_names": names, "quant_bits": wanted[names[0]]} for names in layers.values()]

    def _askers(self, tensor: RoundedTensor) -> list[tuple[str, str]]:
        """The members whose settings say the bits: what makes a result, if it is to be rounded for all who
        read it, or else these.
        """
        asked = [m for m in tensor.members if m[0] in self._settings]
        asked = [(layer, kind) for layer, kind in asked if kind in self._settings[layer].quant_types]
        return [m for m in asked if m[1] == "output"] or asked

    def _find(self, module: CompiledModule) -> dict[str, _Item]:
        """The choices. Tensors that have their bits from one key of a config entry are one, and so are those
        that share a quantizer.
        """
        tensors = rounded_tensors(module)
        mine = {name: self._askers(tensor) for name, tensor in tensors.items()}
        mine = {name: members for name, members in mine.items() if members and members[0][1] in self._types}
        parent = {member: member for members in mine.values() for member in members}

        def root(member: tuple[str, str]) -> tuple[str, str]:
            while parent[member] != member:
                member = parent[member]
            return member

        for members in mine.values():
            for member in members:
                parent[root(member)] = root(members[0])
        items: dict[tuple[str, str], _Item] = {}
        for name, members in mine.items():
            item = items.setdefault(root(members[0]), _Item({}, [], 0.0))
            item.members |= dict.fromkeys(members)
            item.quantizers.append(name)
            item.bytes += tensors[name].bytes
        return {item.name: item for item in items.values()}
