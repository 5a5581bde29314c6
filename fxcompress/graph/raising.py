"""Give captured operators back to the modules they came from.

    y = aten.conv2d(x, conv_weight, conv_bias, [1, 1], [1, 1])     →     y = self.conv(x)

A leaf module is a childless module of ``torch.nn`` (not a subclass with code of its own), called with one
positional tensor, whose call is a single operator. A module that returned its input unchanged in eval mode
(stochastic depth, say) is kept as a call, so that it acts in train mode.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fxcompress import ops
from fxcompress.graph.calls import Activation, Aten, Attribute, bind, positions

_ROOT_MODE = "_mode"
_RECURRENT = tuple(getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))


@dataclass
class LeafCalls:
    """Which calls of which modules were plain ``module(tensor)`` calls, in order of calling."""

    plain: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    identities: set[str] = field(default_factory=set)


class TrainingMode(nn.Module):
    """Carries the root's ``training`` flag into the graph."""


@contextlib.contextmanager
def watch_leaf_calls(model: nn.Module) -> Iterator[LeafCalls]:
    """Record how childless modules are called, and mark those that return their input in eval mode."""
    calls = LeafCalls()
    patched: list[nn.Module] = []
    hooks = []
    for name, module in model.named_modules():
        if module._modules or not name:
            continue
        hooks.append(module.register_forward_pre_hook(_recorder(calls, name), with_kwargs=True))
        if isinstance(module, _DropoutNd) and type(module) is not nn.Dropout:
            module.forward = _marked_dropout(calls, name)
            patched.append(module)
            continue
        if type(module).__module__.startswith("torch.nn.") or next(module.parameters(), None) is not None:
            continue
        if "forward" in module.__dict__:
            continue
        module.forward = _marking(calls, name, module.forward)
        patched.append(module)
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        for module in patched:
            del module.__dict__["forward"]


def _recorder(calls: LeafCalls, name: str) -> Callable[..., None]:
    def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.plain[name].append(len(args) == 1 and not kwargs and isinstance(args[0], Tensor))

    return record


def _marking(calls: LeafCalls, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        if len(args) == 1 and not kwargs and result is args[0] and isinstance(result, Tensor):
            calls.identities.add(name)
            return torch.dropout(result, 0.0, False)
        return result

    return marked


def _marked_dropout(calls: LeafCalls, name: str) -> Callable[..., Any]:
    """Dropouts over channels and alpha dropout leave no operator behind in eval mode: leave one."""

    def marked(x: Tensor) -> Tensor:
        calls.identities.add(name)
        return torch.dropout(x, 0.0, False)

    return marked


def raise_leaf_modules(graph: fx.Graph, model: nn.Module, calls: LeafCalls) -> None:
    """Replace single-operator leaf-module calls by ``call_module`` nodes."""
    by_call: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        key = _locate(node)
        if node.op == "call_function" and key is not None and node.target is not ops.unless_training:
            by_call[key].append(node)
    for key, nodes in by_call.items():
        if len(nodes) != 1:
            continue
        path = nodes[0].meta["module"]
        module = _submodule(model, path)
        if module is None or not _is_leaf(module, path, calls) or not _was_plain(calls, path, key):
            continue
        _raise(graph, nodes[0], path, model)


def _locate(node: fx.Node) -> str | None:
    """The key of the innermost module call that made the node; its name goes to ``meta["module"]``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return None
    key, (path, _) = list(stack.items())[-1]
    if key.startswith("_empty"):
        return None
    node.meta["module"] = str(path).partition("@")[0]
    return str(key)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path) if path else None
    except AttributeError:
        return None


def _is_leaf(module: nn.Module, path: str, calls: LeafCalls) -> bool:
    if path in calls.identities:
        return True
    return type(module).__module__.startswith("torch.nn.") and not module._modules


def _was_plain(calls: LeafCalls, path: str, key: str) -> bool:
    _, _, count = key.partition("@")
    index = int(count) if count.isdigit() else 0
    plain = calls.plain.get(path, [])
    return index < len(plain) and plain[index]


def _raise(graph: fx.Graph, node: fx.Node, path: str, model: nn.Module) -> None:
    module = model.get_submodule(path)
    own = {id(t): n for n, t in [*module.named_parameters(), *module.named_buffers()]}
    activations: list[fx.Node] = []

    def template(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        attribute = own.get(id(_tensor(model, str(value.target)))) if value.op == "get_attr" else None
        if attribute is not None:
            return Attribute(attribute)
        activations.append(value)
        return Activation()

    bound = {k: template(v) for k, v in bind(node.target, node.args, dict(node.kwargs)).items()}
    if len(activations) != 1 or any(isinstance(v, (list, tuple)) and _holds_node(v) for v in bound.values()):
        return
    with graph.inserting_before(node):
        call = graph.create_node("call_module", path, (activations[0],), {})
    call.meta = dict(node.meta, aten=Aten(node.target, bound))
    node.replace_all_uses_with(call)
    used = [n for n in node.all_input_nodes if n.op == "get_attr"]
    graph.erase_node(node)
    for attribute in used:
        if not attribute.users:
            graph.erase_node(attribute)


def _tensor(model: nn.Module, name: str) -> object:
    """The tensor ``name`` of the model, whatever name a tied one goes by."""
    owner, _, attribute = name.rpartition(".")
    try:
        return getattr(model.get_submodule(owner), attribute, None)
    except AttributeError:
        return None


def _holds_node(values: Any) -> bool:
    return any(isinstance(v, fx.Node) for v in values)


def follow_training_flag(graph: fx.Graph, root: nn.Module, model: nn.Module) -> list[str]:
    """Make dropout, BatchNorm and recurrent layers that were inlined follow ``train()``/``eval()``."""
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default)):
        x, p, _ = bind(node.target, node.args, dict(node.kwargs)).values()
        owner = _owner(graph, root, node)
        node.target, node.args, node.kwargs = ops.dropout, (x, p, owner), {}
    for node in graph.find_nodes(op="call_function", target=ops.unless_training):
        node.args = (*node.args[:2], _owner(graph, root, node))
    for kind in _RECURRENT:
        for node in list(graph.find_nodes(op="call_function", target=kind)):
            bound = bind(node.target, node.args, dict(node.kwargs))
            following = getattr(ops, kind.__name__.partition(".")[0])
            bound["owner"] = _owner(graph, root, node)
            node.target, node.kwargs = following, {}
            node.args = tuple(bound[name] for name in positions(following))
    notes = []
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)):
        args = bind(node.target, node.args, dict(node.kwargs))
        module = _submodule(model, node.meta.get("module", ""))
        if not isinstance(module, _BatchNorm):
            notes.append(
                f"{node}: batch_norm outside a BatchNorm module keeps its captured statistics in train mode"
            )
            continue
        if args["running_mean"] is None:
            notes.append(f"{node}: batch_norm without running statistics keeps using the batch's")
            continue
        owner = _owner(graph, root, node)
        momentum = None if module.momentum is None else args["momentum"]
        batches = _attribute(graph, root, node, "num_batches_tracked")
        inputs = tuple(args[k] for k in ("input", "weight", "bias", "running_mean", "running_var"))
        node.target, node.args, node.kwargs = (
            ops.batch_norm,
            (*inputs, batches, owner, momentum, args["eps"]),
            {},
        )
    return notes


def fixed_to_eval(model: nn.Module, calls: LeafCalls) -> list[str]:
    """A note for each class whose own code reads ``self.training``: the graph holds its eval form."""
    names: dict[type[nn.Module], list[str]] = defaultdict(list)
    reads = {kind: _reads_training(kind) for kind in map(type, model.modules())}
    for name, module in model.named_modules():
        kind = type(module)
        if name not in calls.identities and reads[kind] and getattr(module, "dropout", 1.0) != 0.0:
            names[kind].append(name or "the model")
    return [
        f"{found[0]}{f' and {len(found) - 1} more' if found[1:] else ''}: {kind.__name__}.forward reads "
        "self.training; the graph does what it does in eval mode"
        for kind, found in names.items()
    ]


def _reads_training(kind: type[nn.Module]) -> bool:
    if kind.__module__.startswith("torch.nn.") and kind is not nn.MultiheadAttention:
        return False
    try:
        return "self.training" in inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return False


def _owner(graph: fx.Graph, root: nn.Module, node: fx.Node) -> fx.Node:
    """A ``get_attr`` node for the module whose code made ``node``."""
    path = node.meta.get("module") or _ROOT_MODE
    if path == _ROOT_MODE and _ROOT_MODE not in root._modules:
        root.add_module(_ROOT_MODE, TrainingMode().train(root.training))
    with graph.inserting_before(node):
        return graph.create_node("get_attr", path, (), {})


def _attribute(graph: fx.Graph, root: nn.Module, node: fx.Node, attribute: str) -> fx.Node | None:
    path = node.meta["module"]
    if getattr(root.get_submodule(path), attribute, None) is None:
        return None
    with graph.inserting_before(node):
        return graph.create_node("get_attr", f"{path}.{attribute}", (), {})
