"""``save`` and ``load``: a compiled model as one file, without pickle and without the model's class.

The file is an uncompressed zip:

    graph.json            fx nodes, calling convention, notes, example inputs that are no tensors
    modules.json          module hierarchy with constructor arguments; names, ties and flags of the tensors
    weights.safetensors   every parameter and buffer, once
    inputs.safetensors    example inputs that are tensors

Reading it imports nothing, evaluates nothing and builds only ``torch.nn`` layers, whoever wrote the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxcompress.errors import ExportError
from fxcompress.export.files import replacing
from fxcompress.export.graphs import identifier, read_graph, write_graph
from fxcompress.export.hierarchy import called_modules, check_name, read_modules, write_modules
from fxcompress.export.tensors import place_tensors, read_tensors, write_table, write_tensors
from fxcompress.export.values import Json, NotStorable, Reader, Writer, malformed
from fxcompress.graph.module import CompiledModule, Scope, get_tensor

FORMAT = "fxcompress"
FORMAT_VERSION = 1
_MEMBERS = ("graph.json", "modules.json", "weights.safetensors", "inputs.safetensors")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LARGEST_JSON = 1 << 28
"""Bytes; a graph of a million nodes has half of them. What claims more expands to fill the memory."""
# What reading malformed contents raises; RuntimeError includes RecursionError.
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OSError, EOFError, zlib.error)


def save(module: CompiledModule, path: str | os.PathLike[str]) -> None:
    """Write ``module`` (captured, masked or sped up) to ``path``; an existing file is replaced at the end.

    Hooks on modules, ``.report`` and optimizer state are not stored; modules that do nothing in eval mode
    (stochastic depth) become identities, which the loaded model's ``notes`` say.

    Raises:
        ExportError: names the node or module that a file cannot hold, and what to do.
    """
    if not isinstance(module, CompiledModule):
        raise ExportError(
            f"expected a compiled model, got {type(module).__name__}; make one with fxcompress.capture(model)"
        )
    with replacing(path) as temporary:
        _write(module, temporary)


def _write(module: CompiledModule, path: Path) -> None:
    notes = list(module.notes)
    table, tensors = write_table(module)
    writer = Writer(keep_tensors=True)
    example_inputs = _write_inputs(module, writer, notes)
    modules = {"modules": write_modules(module, module.graph, notes), "tensors": table}
    graph = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "class": identifier(type(module).__name__, "the class name"),
        "training": module.training,
        "batch_is_dynamic": module.batch_is_dynamic,
        "reads_sizes": module.reads_sizes,
        **write_graph(module.graph, notes),
        "example_inputs": example_inputs,
        "notes": list(dict.fromkeys(notes)),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("graph.json", graph), ("modules.json", modules)):
            text = json.dumps(content, allow_nan=False, indent=0)
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), text, zipfile.ZIP_DEFLATED)
        for name, part in (("weights.safetensors", tensors), ("inputs.safetensors", writer.tensors)):
            loose = path.with_name(name)
            write_tensors(part, loose)
            _append(archive, loose)
            loose.unlink()


def _append(archive: zipfile.ZipFile, file: Path) -> None:
    """Stream ``file`` into the archive; the fixed date makes equal models equal files."""
    member = zipfile.ZipInfo(file.name, _EPOCH)
    member.file_size = file.stat().st_size
    with file.open("rb") as source, archive.open(member, "w") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _write_inputs(module: CompiledModule, writer: Writer, notes: list[str]) -> Json:
    try:
        return writer.write(tuple(module.example_inputs))
    except NotStorable as error:
        notes.append(f"the example inputs hold a {error} and are not stored")
        writer.tensors.clear()
        return Writer().write(((), {}))


def load(path: str | os.PathLike[str]) -> CompiledModule:
    """Read a model written by ``save``: same outputs, names, modes, ties and notes; tensors are on the CPU.

    Safe on files of unknown origin: nothing in the file is imported, unpickled or evaluated.

    Raises:
        ExportError: says what is wrong with the file and what to do.
    """
    path = Path(path)
    with _explained(path), _opened(path) as archive:
        graph_data = _header(json.loads(archive.read("graph.json")))
        modules = json.loads(archive.read("modules.json"))
        root = read_modules(modules["modules"])
        place_tensors(root, modules["tensors"], read_tensors(archive.read("weights.safetensors"), "weights"))
        inputs = read_tensors(archive.read("inputs.safetensors"), "example inputs")
        return _assemble(
            root, graph_data, Reader(tensors=inputs).read(graph_data["example_inputs"], "example inputs")
        )


def _assemble(root: nn.Module, data: Json, example_inputs: Any) -> CompiledModule:
    graph = read_graph(data)
    _check_references(root, graph)
    graph.lint()
    module = CompiledModule(root, graph, identifier(data["class"], "the class name"))
    if not (isinstance(example_inputs, tuple) and [type(part) for part in example_inputs] == [tuple, dict]):
        raise malformed("example inputs", data["example_inputs"], None)
    module.example_inputs = example_inputs
    module.notes = tuple(str(note) for note in data["notes"])
    module.batch_is_dynamic = bool(data["batch_is_dynamic"])
    module.reads_sizes = bool(data.get("reads_sizes"))
    module.training = bool(data["training"])
    return module


def _check_references(root: nn.Module, graph: fx.Graph) -> None:
    """Every attribute exists, and every called module is a layer of the file."""
    modules = dict(root.named_modules(remove_duplicate=False))
    for name, node in called_modules(graph).items():
        module = modules.get(name)
        if module is None or isinstance(module, Scope) or type(module).forward is nn.Module.forward:
            raise malformed(f"node {node.name}: module", name, None)
    for node in graph.find_nodes(op="get_attr"):
        name = check_name(node.target)
        if name not in modules:
            get_tensor(root, name)


def _header(data: Json) -> Json:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise malformed("graph.json", data, None)
    if data.get("version") != FORMAT_VERSION:
        raise ExportError(
            f"the file has format version {data.get('version')!r}, this fxcompress reads {FORMAT_VERSION}\n"
            "Update fxcompress, or save the model again with this version."
        )
    return data


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(path) as archive:
        missing = [name for name in _MEMBERS if name not in archive.namelist()]
        if missing:
            raise ExportError(f"it lacks {', '.join(missing)}; expected a file written by fxcompress.save")
        for member in map(archive.getinfo, _MEMBERS):
            packed = member.compress_type != zipfile.ZIP_STORED
            if packed and (not member.filename.endswith(".json") or member.file_size > _LARGEST_JSON):
                raise ExportError(
                    f"{member.filename} would expand to {member.file_size:,} bytes; save writes no such file"
                )
        yield archive


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Every way in which a file can be wrong becomes an ``ExportError`` that names it."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"cannot load {path}: {error}") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ExportError(
            f"cannot load {path}: {error.strerror}; give the path of a file written by save"
        ) from error
    except zipfile.BadZipFile as error:
        raise ExportError(
            f"cannot load {path}: {error}; expected a file written by fxcompress.save (state dicts and other "
            "checkpoints are loaded with torch.load), or the file is damaged: get it again"
        ) from error
    except _DAMAGE as error:
        raise ExportError(
            f"cannot load {path}: its contents do not fit together ({type(error).__name__}: {error}); "
            "the file is damaged, save the model again"
        ) from error
