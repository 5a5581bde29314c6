"""In-place operators become functional ones, and later reads of the written tensor read the result.

    y = relu_(x); z = x + y     →     y = relu(x); z = y + y

A write through a view (or to a tensor whose views are read afterwards) is refused with ``NotFunctional``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_MAY_RETURN_ITS_INPUT = {"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"}


def restore_batch_norm(graph: fx.Graph) -> None:
    """Undo what ``run_decompositions`` does to BatchNorm in eval mode:
    it cannot follow train mode otherwise.
    """
    aten = torch.ops.aten
    decomposed = aten._native_batch_norm_legit_no_training.default
    for node in list(graph.find_nodes(op="call_function", target=decomposed)):
        x, weight, bias, mean, var, momentum, eps = node.args
        if any(user.args[1] != 0 for user in node.users):
            continue
        with graph.inserting_before(node):
            args = (x, weight, bias, mean, var, False, momentum, eps, False)
            norm = graph.call_function(aten.batch_norm.default, args)
        for first in list(node.users):
            norm.meta = dict(first.meta, nn_module_stack=node.meta.get("nn_module_stack"))
            first.replace_all_uses_with(norm)
            graph.erase_node(first)
        graph.erase_node(node)


class NotFunctional(Exception):
    """The graph writes through an alias."""


def functionalize(graph: fx.Graph) -> fx.Graph:
    """Rewrite ``graph`` in place; its nodes and their order stay, only targets and arguments change."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            source = node.args[0] if node.op == "call_function" and node.args else None
            if getattr(node.target, "__name__", "") == "getitem" and isinstance(source, fx.Node):
                _join(family, source, node)
            continue
        written = _written(node)
        if written is None:
            for source in _aliased(node):
                _join(family, source, node)
            continue
        if not isinstance(written, fx.Node):
            raise NotFunctional(str(node))
        _refuse_live_aliases(node, written, family, order)
        node.target = _functional(node.target)
        if any(user is not node and order[user] > order[node] for user in written.users):
            for user in list(written.users):
                if order[user] > order[node]:
                    user.replace_input_with(written, node)
    return graph


def _join(family: dict[fx.Node, list[fx.Node]], source: fx.Node, node: fx.Node) -> None:
    members = family.setdefault(source, [source])
    members.append(node)
    family[node] = members


def _written(node: fx.Node) -> Any:
    """The argument the operator writes to, or ``None``."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.alias_info is not None and argument.alias_info.is_write:
            return node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
    return None


def _aliased(node: fx.Node) -> list[fx.Node]:
    schema = node.target._schema  # type: ignore[union-attr]
    names = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None]
    if schema.name in _MAY_RETURN_ITS_INPUT:
        names = [0]
    return [node.args[i] for i in names if i < len(node.args) and isinstance(node.args[i], fx.Node)]  # type: ignore[misc]


def _refuse_live_aliases(
    node: fx.Node, written: fx.Node, family: dict[fx.Node, list[fx.Node]], order: dict[fx.Node, int]
) -> None:
    if written.op == "get_attr":
        raise NotFunctional(f"{node} writes to {written.target}")
    for alias in family.get(written, ()):
        if alias is not written and any(order[user] > order[node] for user in alias.users):
            raise NotFunctional(f"{node} writes to {written}, which {alias} shares")


def _functional(target: torch._ops.OpOverload) -> torch._ops.OpOverload:
    name = target._schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") else None
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    if overload is None:
        raise NotFunctional(f"{target} has no functional form")
    return overload  # type: ignore[no-any-return]
