"""``fxcompress inspect``: what the graph of a model holds, and which channels are tied to each other."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from fxcompress.commands.found import Found, add_json, row, table
from fxcompress.commands.options import add_model, check_model, new_command

if TYPE_CHECKING:
    from rich.table import Table
    from torch import fx

    from fxcompress.graph.cost import MacCount
    from fxcompress.graph.module import CompiledModule
    from fxcompress.pruning.groups import ChannelGroup

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress inspect models.resnet:make --input 1x3x224x224
fxcompress inspect torchvision.models:resnet18 --model-args '{"num_classes": 10}' --json
fxcompress inspect small.pt2
"""


def add_inspect(commands: Commands) -> None:
    """Layers and channel groups of a model."""
    text = "show parameters, MACs and output shape of every layer, and which channels are tied to each other"
    parser = new_command(commands, "inspect", text, _EXAMPLES)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=run_inspect)


def run_inspect(options: argparse.Namespace) -> Found:
    """Capture the model and look at it."""
    check_model(options)

    from fxcompress.commands.models import captured
    from fxcompress.graph.calls import call_of
    from fxcompress.graph.cost import count_bytes, count_macs, count_parameters
    from fxcompress.pruning.groups import channel_groups

    module = captured(options)
    macs = count_macs(module, module.example_inputs)
    layers, groups = _layers(module, macs), channel_groups(module)
    calls = [call for call in map(call_of, module.graph.nodes) if call is not None]
    operators = dict(Counter(call.op for call in calls).most_common())
    totals = {"parameters": count_parameters(module), "bytes": count_bytes(module), "macs": macs.total}
    facts = {
        "model": options.model,
        **totals,
        "operators": operators,
        "layers": layers,
        "groups": [vars(group) for group in groups],
        "notes": list(module.notes),
    }
    made = table(
        f"{options.model}: {len(layers)} layers", "layer", "type", "output", "parameters", "MACs", left=3
    )
    for layer in layers:
        output = layer["output"] and "×".join(map(str, layer["output"]))
        row(made, layer["name"], layer["type"], output, layer["parameters"], layer["macs"])
    made.add_section()
    row(made, "in all", "", "", totals["parameters"], totals["macs"])
    listed = ", ".join(f"{count} {op}" for op, count in operators.items())
    lines = [f"\n{len(calls)} operators: {listed}", *(f"note: {_told(note)}" for note in module.notes)]
    return Found(facts, (made, "", _groups_table(groups), *lines))


def _told(note: str) -> str:
    """A note of the capture as the command line says it."""
    return note.replace("pass example_inputs to choose", "choose with --input")


def _groups_table(groups: list[ChannelGroup]) -> Table:
    columns = ("layers that make them", "why some must stay", "channels", "prunable")
    made = table("channels that stand or fall together", *columns, left=2)
    for group in groups:
        row(made, ", ".join(group.layers), group.reason or "", group.channels, group.free)
    return made


def _layers(module: CompiledModule, macs: MacCount) -> list[dict[str, Any]]:
    """What has parameters or MACs, in the order of the graph; a shared parameter counts at its first owner.

    The MACs are those of one example; ``n`` in an output shape is the batch.
    """
    from fxcompress.graph.cost import layer_of

    parameters: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    nodes: dict[str, fx.Node | None] = {}
    constant: set[fx.Node] = set()  # parameters, and what is computed from them alone
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr" or (node.all_input_nodes and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
        layer = str(node.target).rpartition(".")[0] if node.op == "get_attr" else layer_of(node)
        if layer in parameters or layer in macs.by_layer:
            nodes[layer] = nodes.get(layer) if node in constant else node
    nodes |= {name: None for name in parameters if name not in nodes}
    return [
        {
            "name": name or "(model)",
            "type": _type(module, name, node),
            "parameters": parameters[name],
            "macs": macs.by_layer.get(name, 0),
            "output": None if node is None else _output(node),
        }
        for name, node in nodes.items()
    ]


def _type(module: CompiledModule, name: str, node: fx.Node | None) -> str:
    """The class of a layer, or the operator of a node that is none."""
    from fxcompress.graph.calls import call_of

    try:
        return str(module.get_submodule(name)._get_name())
    except AttributeError:
        call = None if node is None else call_of(node)
        return "" if call is None else call.op


def _output(node: fx.Node) -> list[int | str] | None:
    from fxcompress.graph.shapes import info

    found = info(node)
    if found is None:
        return None
    return [_size(size, dynamic) for size, dynamic in zip(found.shape, found.dynamic, strict=True)]


def _size(size: int, dynamic: bool) -> int | str:
    """A size, or how often the batch ``n`` is in it."""
    from fxcompress.graph.calls import PROBE

    if not dynamic:
        return size
    times, rest = divmod(size, PROBE)
    return "?" if rest else "n" if times == 1 else f"{times}n"
