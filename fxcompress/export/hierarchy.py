"""``modules.json``: the module hierarchy, rebuilt from class names of ``torch.nn`` and constructor arguments.

What the graph calls is a ``torch.nn`` layer; every other module only names a place and becomes a ``Scope``.
A layer's constructor arguments are its attributes of the same names as the constructor's parameters; the
layer is rebuilt from them at save time, and one that comes out differently is refused there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress import ops
from fxcompress.errors import ExportError, did_you_mean
from fxcompress.export.values import Json, Reader, Writer, malformed
from fxcompress.graph.calls import Aten
from fxcompress.graph.module import Scope
from fxcompress.numerics.fake_quantize import TENSOR_QUANTIZERS

_PART = re.compile(r"[\w \-+/:@,=<>]+")
_PLAIN = (bool, int, float, str, tuple, list, type(None))


class StoredIdentity(nn.Identity):
    """Stands where a module that did nothing in eval mode was (stochastic depth, say); does nothing."""

    def __init__(self, class_name: str) -> None:
        super().__init__()
        self._class_name = class_name

    def _get_name(self) -> str:
        return "Identity"

    def extra_repr(self) -> str:
        """Names the class it replaces."""
        return f"in place of {self._class_name}"


@functools.cache
def layer_classes() -> dict[str, type[nn.Module]]:
    """The classes a file may name: every module class defined in ``torch.nn.modules``."""
    found: dict[str, type[nn.Module]] = {}
    for info in pkgutil.iter_modules(nn.modules.__path__):
        module = importlib.import_module(f"{nn.modules.__name__}.{info.name}")
        for name, cls in vars(module).items():
            if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__:
                found.setdefault(name, cls)
    return found


def called_modules(graph: fx.Graph) -> dict[str, fx.Node]:
    """Qualified names of the modules the graph calls, each with a node that does."""
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), node)
        elif node.op == "call_function" and node.target is ops.call and isinstance(node.args[0], fx.Node):
            found.setdefault(str(node.args[0].target), node)
        elif node.target is ops.fake_quantize:
            found.setdefault(str(node.all_input_nodes[-1].target), node)
    return found


def write_modules(root: nn.Module, graph: fx.Graph, notes: list[str]) -> list[Json]:
    """One entry per qualified name below ``root``, parents first; ``notes`` gets what the file cannot keep.

    Raises:
        ExportError: names a called module that cannot be rebuilt, the node, and what to do.
    """
    called = called_modules(graph)
    first: dict[int, str] = {}
    entries = []
    for name, module in root.named_modules(remove_duplicate=False):
        if not name:
            continue
        check_name(name)
        if id(module) in first:
            entries.append({"name": name, "kind": "alias", "of": first[id(module)]})
            continue
        first[id(module)] = name
        entry = _write_module(name, module, called.get(name) or _alias_call(root, module, called), notes)
        entries.append({"name": name, "training": module.training, **entry})
    return entries


def _alias_call(root: nn.Module, module: nn.Module, called: dict[str, fx.Node]) -> fx.Node | None:
    return next((node for name, node in called.items() if root.get_submodule(name) is module), None)


def _write_module(name: str, module: nn.Module, node: fx.Node | None, notes: list[str]) -> Json:
    if node is not None and (module._forward_hooks or module._forward_pre_hooks):
        _note(notes, f"{name}: forward hooks are not stored")
    if TENSOR_QUANTIZERS.get(type(module).__name__) is type(module):
        return {"kind": "quantizer", "class": type(module).__name__, "options": module.options()}
    stored = _write_layer(module)
    if isinstance(stored, dict):
        return stored
    if node is None:
        name_of = module._class_name if isinstance(module, Scope | StoredIdentity) else type(module).__name__
        return {"kind": "scope", "class": name_of}
    if _is_identity(node) or isinstance(module, StoredIdentity):
        original = module._class_name if isinstance(module, StoredIdentity) else type(module).__name__
        _note(notes, f"{name}: {original} does nothing in eval mode and is stored as an identity")
        return {"kind": "identity", "class": original}
    raise ExportError(
        f"{name} ({type(module).__module__}.{type(module).__qualname__}, called by node {node.name}) "
        f"cannot be rebuilt from a file: {stored}\nFiles hold torch.nn layers; use one, write it with "
        "torch functions so that capture inlines it, or store the state_dict and rebuild the model in code."
    )


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def _is_identity(node: fx.Node) -> bool:
    """Whether capture marked the module as returning its input (``dropout`` with p = 0)."""
    aten = node.meta.get("aten")
    return (
        isinstance(aten, Aten)
        and aten.target is torch.ops.aten.dropout.default
        and aten.args.get("p") == 0.0
        and aten.args.get("train") is False
    )


def _write_layer(module: nn.Module) -> Json | str:
    """The entry of a ``torch.nn`` layer, or the reason why it has none."""
    cls = type(module)
    if layer_classes().get(cls.__name__) is not cls:
        return "its class is not one of torch.nn"
    if module._modules:
        return "it has submodules"
    if "forward" in vars(module):
        return "its forward was replaced"
    arguments = {name: _argument(module, name) for name in _constructor(cls) if hasattr(module, name)}
    try:
        twin = _build(cls, arguments)
        written = {name: Writer().write(value) for name, value in arguments.items()}
    except Exception as error:
        return f"{cls.__name__}({arguments}) fails with {type(error).__name__}: {error}"
    difference = _difference(module, twin)
    return difference if difference else {"kind": "layer", "class": cls.__name__, "arguments": written}


def _argument(module: nn.Module, name: str) -> Any:
    """A constructor argument; for ``bias`` (kept as the tensor it made) whether there is one."""
    value = getattr(module, name)
    return value is not None if name == "bias" and not isinstance(value, bool) else value


def _constructor(cls: type[nn.Module]) -> tuple[str, ...]:
    skipped = ("self", "device", "dtype")
    parameters = inspect.signature(cls.__init__).parameters.values()
    usable = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return tuple(p.name for p in usable if p.name not in skipped and not p.name.startswith("_"))


def _build(cls: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return cls(**arguments)


def _difference(module: nn.Module, twin: nn.Module) -> str | None:
    """How the rebuilt layer differs from the layer, or ``None``. Extra buffers (masks) are fine."""
    have, made = _tensors(module), _tensors(twin)
    for name, tensor in made.items():
        got = None if name not in have else tuple(have[name].shape)
        if got != tuple(tensor.shape):
            return f"its {name} has shape {got}, the rebuilt layer's {tuple(tensor.shape)}"
    extra = [n for n in have if n not in made and n in module._parameters]
    if extra:
        return f"it has parameters of its own: {', '.join(extra)}"
    for name, value in vars(twin).items():
        if name.startswith("_") or name == "training" or not isinstance(value, _PLAIN):
            continue
        if vars(module).get(name, value) != value:
            return f"its {name} is {vars(module)[name]!r}, the rebuilt layer's {value!r}"
    return None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    both = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in both.items() if tensor is not None}


def check_name(name: Json) -> str:
    """A qualified name whose parts can stand in generated code.

    Raises:
        ExportError: otherwise.
    """
    if isinstance(name, str) and all(_PART.fullmatch(part) for part in name.split(".")):
        return name
    raise ExportError(
        f"the module or tensor name {name!r} cannot be stored: "
        "expected letters, digits and '_ -+/:@,=<>' between dots; rename it"
    )


def read_modules(entries: list[Json]) -> nn.Module:
    """The hierarchy behind ``entries``; its tensors are on the meta device until they are put in place.

    Raises:
        ExportError: for unknown classes, missing parents and constructor arguments that do not fit.
    """
    root = nn.Module()
    for entry in entries:
        name = check_name(entry["name"])
        parent, _, child = name.rpartition(".")
        if entry["kind"] == "alias":
            module = root.get_submodule(check_name(entry["of"]))
        else:
            module = _read_module(entry, f"module {name}")
            module.training = bool(entry["training"])
        root.get_submodule(parent)._modules[child] = module
    return root


def _read_module(entry: Json, where: str) -> nn.Module:
    kind, class_name = entry["kind"], entry["class"]
    if not isinstance(class_name, str):
        raise malformed(where, class_name, None)
    if kind == "scope":
        return Scope(class_name)
    if kind == "identity":
        return StoredIdentity(class_name)
    if kind == "quantizer" and class_name in TENSOR_QUANTIZERS:
        return _read_quantizer(class_name, entry["options"], where)
    if kind != "layer":
        raise malformed(where, kind, None)
    cls = layer_classes().get(class_name)
    if cls is None:
        raise ExportError(
            f"{where}: {class_name!r} is not a torch.nn layer of torch {torch.__version__}"
            f"{did_you_mean(class_name, layer_classes())}\nThe file is from another torch, or tampered with."
        )
    arguments = {key: Reader().read(value, where) for key, value in entry["arguments"].items()}
    unknown = [key for key in arguments if key not in _constructor(cls)]
    if unknown:
        raise malformed(where, unknown, TypeError(f"no argument of {class_name}"))
    try:
        return _build(cls, arguments)
    except Exception as error:
        raise malformed(where, arguments, error) from error


def _read_quantizer(class_name: str, options: Json, where: str) -> nn.Module:
    """A tensor quantizer; its tensors, whose shapes follow what it has seen, are put in place later."""
    try:
        module = TENSOR_QUANTIZERS[class_name].restored(options)
    except Exception as error:
        raise malformed(where, options, error) from error
    tables: tuple[dict[str, Any], ...] = module._parameters, module._buffers
    for table in tables:
        table.update(dict.fromkeys(table))
    return module
