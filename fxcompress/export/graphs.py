"""``graph.json``: the nodes of an fx graph and its calling convention.

fx turns a graph into Python source, so every name read from a file is checked to be an identifier first.
"""

from __future__ import annotations

import keyword
from typing import Any, cast

import torch
from torch import fx
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo

from fxcompress.errors import ExportError
from fxcompress.export.specs import read_spec, write_spec
from fxcompress.export.targets import function_name, function_of
from fxcompress.export.values import Json, NotStorable, Reader, Writer, malformed

_NOT_KEPT = frozenset({"stack_trace", "val", "from_node", "source_fn_stack"})


def write_graph(graph: fx.Graph, notes: list[str]) -> Json:
    """``graph`` as JSON; conversions of user classes are added to ``notes``.

    Raises:
        ExportError: names the node that cannot be stored, why, and what to do.
    """
    writer = Writer(nodes=frozenset(node.name for node in graph.nodes))
    return {
        "nodes": [_write_node(node, writer) for node in graph.nodes],
        "signature": _write_signature(graph, notes),
    }


def _write_node(node: fx.Node, writer: Writer) -> Json:
    where = f"node {node.name}"
    if node.op == "call_function":
        target = function_name(node.target, where)
    elif node.op == "call_method":
        raise ExportError(
            f"{where} calls the method {node.target!r}; expected ATen operators: capture the model again"
        )
    else:
        target = str(node.target)
    try:
        args, kwargs = writer.write(tuple(node.args)), writer.write(dict(node.kwargs))
    except NotStorable as error:
        raise ExportError(
            f"{where} ({node.target}) has an argument of type {error}, which a model file cannot hold\n"
            "Pass numbers, strings, dtypes or tensors; register constants of the model as buffers."
        ) from error
    return {
        "op": node.op,
        "name": node.name,
        "target": target,
        "args": args,
        "kwargs": kwargs,
        "meta": _write_meta(node, writer),
    }


def _write_meta(node: fx.Node, writer: Writer) -> Json:
    """The facts later passes read; what belongs to this process only (traces, fake tensors) is left out."""
    kept = {}
    for key, value in node.meta.items():
        if key in _NOT_KEPT or not isinstance(key, str):
            continue
        try:
            kept[key] = writer.write(_named_classes(value) if key == "nn_module_stack" else value)
        except NotStorable:
            continue
    return kept


def _named_classes(stack: Any) -> Any:
    def name(cls: Any) -> str:
        return f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else str(cls)

    return {str(key): (str(path), name(cls)) for key, (path, cls) in stack.items()}


def _write_signature(graph: fx.Graph, notes: list[str]) -> Json:
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        pytree_info = codegen.pytree_info
        out_spec = pytree_info.out_spec
        return {
            "arguments": list(pytree_info.orig_args),
            "inputs": write_spec(pytree_info.in_spec, notes),
            "outputs": None if out_spec is None else [write_spec(out_spec, notes)],
        }
    if type(codegen) is CodeGen:
        return None
    raise ExportError(
        f"the graph has a calling convention of type {type(codegen).__name__}; capture the model again"
    )


def read_graph(data: Json) -> fx.Graph:
    """The graph behind ``data``; ``call_module`` and ``get_attr`` targets are left for the caller to check.

    Raises:
        ExportError: names the malformed node.
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in data["nodes"]:
        name = identifier(entry["name"], "a node name")
        if name in nodes:
            raise ExportError(
                f"graph.json holds two nodes named {name!r}; the file is damaged, save the model again"
            )
        nodes[name] = _read_node(graph, entry, name, Reader(nodes))
    if not nodes or next(reversed(graph.nodes)).op != "output":
        raise ExportError(
            "graph.json does not end in an output node; the file is damaged, save the model again"
        )
    _read_meta(data["nodes"], nodes)
    signature = data["signature"]
    if signature is not None:
        graph.set_codegen(_PyTreeCodeGen(_read_signature(signature, graph)))
    return graph


def _read_node(graph: fx.Graph, entry: Json, name: str, reader: Reader) -> fx.Node:
    where, op = f"node {name}", entry["op"]
    args, kwargs = reader.read(entry["args"], where), reader.read(entry["kwargs"], where)
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise malformed(where, entry, None)
    for key in kwargs:
        identifier(key, f"{where}: keyword")
    if op == "output":
        node = graph.output(args[0])
    elif op in ("call_function", "call_module", "get_attr", "placeholder"):
        target = _read_target(op, entry["target"], where)
        node = graph.create_node(op, target, args, kwargs, name=name)
    else:
        raise malformed(where, op, None)
    node.name = name
    return cast(fx.Node, node)


def _read_target(op: str, target: Json, where: str) -> Any:
    if op == "call_function":
        return function_of(target, where)
    if op == "placeholder":
        return identifier(target, f"{where}: input name")
    if not isinstance(target, str):
        raise malformed(where, target, None)
    return target


def _read_meta(entries: list[Json], nodes: dict[str, fx.Node]) -> None:
    """Facts may refer to later nodes, so they are read once all nodes exist."""
    reader = Reader(nodes)
    for entry in entries:
        where = f"node {entry['name']}: facts"
        nodes[entry["name"]].meta.update({k: reader.read(v, where) for k, v in entry["meta"].items()})


def _read_signature(data: Json, graph: fx.Graph) -> _PyTreeInfo:
    arguments = [identifier(name, "an input name") for name in data["arguments"]]
    in_spec = read_spec(data["inputs"], "inputs")
    outputs = data["outputs"]
    out_spec = None if outputs is None else read_spec(outputs[0], "outputs")
    if in_spec.num_leaves != len(graph.find_nodes(op="placeholder")):
        raise ExportError(
            "graph.json: inputs and placeholders disagree; the file is damaged, save the model again"
        )
    keywords = in_spec.child(1).context if _takes_keywords(in_spec) else []
    for name in keywords:
        identifier(name, "a keyword input")
    return _PyTreeInfo(arguments, in_spec, out_spec)


def _takes_keywords(spec: torch.utils._pytree.TreeSpec) -> bool:
    return spec.type is tuple and spec.num_children == 2 and spec.child(1).type is dict


def identifier(name: Json, what: str) -> str:
    """``name`` if it can stand in source code.

    Raises:
        ExportError: otherwise.
    """
    if isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name):
        return name
    raise ExportError(
        f"{what} {name!r} is not a plain identifier; the file is damaged or was tampered with. "
        "Get it again from where it was saved."
    )
