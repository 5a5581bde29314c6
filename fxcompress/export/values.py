"""Values as JSON: node arguments, node facts and example inputs.

Numbers, strings, ``None`` and lists stand for themselves; everything else is ``{tag: content}``:

    (x, 2.0)     →   {"tuple": [{"node": "x"}, 2.0]}
    torch.int64  →   {"dtype": "int64"}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.errors import ExportError
from fxcompress.export.targets import function_name, function_of
from fxcompress.graph.calls import Activation, Aten, Attribute, Reference, TensorInfo

Json = Any
_TORCH_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


class NotStorable(Exception):
    """A value that has no place in a file; the message is its type."""


@dataclass
class Writer:
    """Turns values into JSON. Tensors go to ``tensors`` if ``keep_tensors`` is set, else are refused; so are
    nodes whose name is not among ``nodes``."""

    keep_tensors: bool = False
    nodes: frozenset[str] = frozenset()
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def write(self, value: Any) -> Json:
        """``value`` as JSON.

        Raises:
            NotStorable: for objects of other types.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, Tensor) and self.keep_tensors:
            key = f"input.{len(self.tensors)}"
            self.tensors[key] = value
            return {"tensor": key}
        if isinstance(value, list):
            return [self.write(v) for v in value]
        return self._tagged(value)

    def _tagged(self, value: Any) -> Json:
        for tag, kind in _TORCH_KINDS.items():
            if isinstance(value, kind):
                return {tag: str(value).removeprefix("torch.")}
        for cls, tag, content in _WRITERS:
            if type(value) is cls or (cls in (fx.Node, dict) and isinstance(value, cls)):
                return {tag: content(self, value)}
        raise NotStorable(f"{type(value).__module__}.{type(value).__qualname__}")


def _write_node(writer: Writer, value: fx.Node) -> Json:
    if value.name not in writer.nodes:
        raise NotStorable(f"torch.fx.Node ({value.name}, of another graph)")
    return value.name


def _write_aten(writer: Writer, value: Aten) -> Json:
    return [function_name(value.target, "a captured call"), writer.write(dict(value.args))]


_WRITERS: tuple[tuple[type, str, Callable[[Writer, Any], Json]], ...] = (
    (fx.Node, "node", _write_node),
    (tuple, "tuple", lambda w, v: [w.write(x) for x in v]),
    (torch.Size, "size", lambda w, v: [w.write(x) for x in v]),
    (dict, "dict", lambda w, v: [[w.write(k), w.write(x)] for k, x in v.items()]),
    (slice, "slice", lambda w, v: [w.write(x) for x in (v.start, v.stop, v.step)]),
    (complex, "complex", lambda w, v: [w.write(v.real), w.write(v.imag)]),
    (torch.device, "device", lambda _, v: str(v)),
    (type(...), "ellipsis", lambda _, v: None),
    (Reference, "reference", lambda _, v: str(v)),
    (Activation, "activation", lambda _, v: None),
    (Attribute, "attribute", lambda _, v: v.name),
    (Aten, "aten", _write_aten),
    (TensorInfo, "info", lambda w, v: [w.write(x) for x in (v.shape, v.dtype, v.dynamic)]),
)


@dataclass
class Reader:
    """Turns JSON back into values: node names through ``nodes``, tensors through ``tensors``."""

    nodes: Mapping[str, fx.Node] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, data: Json, where: str) -> Any:
        """The value behind ``data``.

        Raises:
            ExportError: names ``where`` and the malformed content.
        """
        if data is None or isinstance(data, (bool, int, float, str)):
            return data
        if isinstance(data, list):
            return [self.read(x, where) for x in data]
        if isinstance(data, dict) and len(data) == 1:
            [(tag, content)] = data.items()
            if tag in _READERS:
                try:
                    return _READERS[tag](self, content, where)
                except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
                    raise malformed(where, data, error) from error
        raise malformed(where, data, None)

    def several(self, content: Json, where: str) -> list[Any]:
        """The values of a JSON list."""
        if not isinstance(content, list):
            raise TypeError(f"expected a list, got {type(content).__name__}")
        return [self.read(x, where) for x in content]

    def text(self, content: Json) -> str:
        """A string."""
        if not isinstance(content, str):
            raise TypeError(f"expected a string, got {type(content).__name__}")
        return content


def malformed(where: str, data: Json, error: Exception | None) -> ExportError:
    """The error for content that no version of fxcompress writes."""
    reason = f" ({type(error).__name__}: {error})" if error is not None else ""
    return ExportError(
        f"{where}: cannot read {str(data)[:120]!r}{reason}\n"
        "The file is damaged or was edited; save the model again."
    )


def _read_torch(tag: str) -> Callable[[Reader, Json, str], Any]:
    def read(reader: Reader, content: Json, _where: str) -> Any:
        value = getattr(torch, reader.text(content), None)
        if not isinstance(value, _TORCH_KINDS[tag]):
            raise ValueError(f"expected a torch {tag}")
        return value

    return read


def _read_aten(reader: Reader, content: Json, where: str) -> Aten:
    name, args = content
    return Aten(function_of(name, where), reader.read(args, where))


def _read_info(reader: Reader, content: Json, where: str) -> TensorInfo:
    shape, dtype, dynamic = reader.several(content, where)
    if not isinstance(shape, tuple) or not isinstance(dtype, torch.dtype) or not isinstance(dynamic, tuple):
        raise ValueError("expected shape, dtype and dynamic flags")
    return TensorInfo(shape, dtype, dynamic)


def _read_float(reader: Reader, content: Json, _where: str) -> float:
    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[reader.text(content)]


_READERS: dict[str, Callable[[Reader, Json, str], Any]] = {
    "node": lambda r, c, _: r.nodes[r.text(c)],
    "tensor": lambda r, c, _: r.tensors[r.text(c)],
    "tuple": lambda r, c, w: tuple(r.several(c, w)),
    "size": lambda r, c, w: torch.Size(r.several(c, w)),
    "dict": lambda r, c, w: {r.read(k, w): r.read(v, w) for k, v in c},
    "slice": lambda r, c, w: slice(*r.several(c, w)),
    "complex": lambda r, c, w: complex(*r.several(c, w)),
    "device": lambda r, c, _: torch.device(r.text(c)),
    "ellipsis": lambda *_: ...,
    "reference": lambda r, c, _: Reference(r.text(c)),
    "activation": lambda *_: Activation(),
    "attribute": lambda r, c, _: Attribute(r.text(c)),
    "float": _read_float,
    "aten": _read_aten,
    "info": _read_info,
    **{tag: _read_torch(tag) for tag in _TORCH_KINDS},
}
