"""``CompiledModule``: an ``fx.GraphModule`` that keeps the user's module hierarchy, names and state dict."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from fxcompress.graph.sizes import SizeCheck, argument_names


class Scope(nn.Module):
    """Stands for a container of the user's model: its name, direct parameters and ``training`` flag.

    The container's own code was inlined into the graph, so a scope is never called.
    """

    def __init__(self, class_name: str, kind: type[nn.Module] | None = None) -> None:
        super().__init__()
        self._class_name = class_name
        self.kind = kind
        """The container's class, where it is known."""

    def _get_name(self) -> str:
        return self._class_name

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"{self._class_name} was inlined into the compiled graph; call the compiled model")


class CompiledModule(fx.GraphModule):
    """A captured, compressed or sped-up model.

    ``graph`` holds ``call_module`` nodes on the model's own leaf modules under their original names and
    ATen functions for the rest. ``example_inputs`` is ``(args, kwargs)`` as given to ``forward``;
    ``notes`` are one-line remarks of the capture (what could not follow train mode, say).
    """

    example_inputs: tuple[tuple[Any, ...], dict[str, Any]]
    notes: tuple[str, ...]
    batch_is_dynamic: bool
    origin: Mapping[str, tuple[torch.Tensor | None, ...]]
    """On a module that ``speedup`` made: parameter → per dimension the slices (indices, ascending) of the
    parameter of the masked module that it consists of, ``None`` for all of them. Parameters made anew are
    missing."""
    report: Any
    """What ``speedup`` changed (``fxcompress.report.Report``); ``None`` on any other module."""

    def __init__(
        self,
        root: nn.Module | Mapping[str, Any],
        graph: fx.Graph,
        class_name: str = "CompiledModule",
        *,
        compiled: bool = True,
    ):
        """``compiled=False``: do not make code yet; ``recompile()`` has to be called before ``forward``."""
        super().__init__(nn.Module(), fx.Graph(), class_name)
        if isinstance(root, nn.Module):
            adopt(self, root)
        if compiled:
            self.graph = graph
        else:
            self._graph, graph.owning_module = graph, self
        self.example_inputs = ((), {})
        self.notes = ()
        self.batch_is_dynamic = False
        self.origin = {}
        self.report = None

    @property
    def reads_sizes(self) -> bool:
        """Whether the model's code computes with sizes, which are those of the example in the graph: calls
        with others warn (``graph.sizes``)."""
        return _check_sizes in self._forward_pre_hooks.values()

    @reads_sizes.setter
    def reads_sizes(self, value: bool) -> None:
        if value and not self.reads_sizes:
            self.register_forward_pre_hook(_check_sizes, with_kwargs=True)

    @functools.cached_property
    def _size_check(self) -> SizeCheck:
        return SizeCheck(self.graph)

    @property
    def argument_names(self) -> list[str]:
        """Those of ``forward``; none for a graph that was not captured."""
        return argument_names(self.graph)

    def recompile(self) -> Any:
        """Make the code of ``forward`` from the graph, if that has any nodes yet."""
        return super().recompile() if len(self._graph.nodes) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        root = nn.Module()
        adopt(root, self)
        twin = CompiledModule(copy.deepcopy(root, memo), copy_graph(self.graph), _class_name(self))
        _copy_facts(self, twin)
        memo[id(self)] = twin
        return twin

    def fork(self, *, graph: fx.Graph | None = None, compiled: bool = True) -> CompiledModule:
        """A module with a graph (``graph``, or a copy of its own) and hierarchy of its own over the same
        parameters and buffers.
        """
        own = copy_graph(self.graph) if graph is None else graph
        twin = CompiledModule(mirror(self), own, _class_name(self), compiled=compiled)
        _copy_facts(self, twin)
        return twin


def _class_name(module: nn.Module) -> str:
    return str(module._get_name())


def _check_sizes(module: CompiledModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not torch.compiler.is_compiling():
        module._size_check(args, kwargs)


def _copy_facts(source: CompiledModule, target: CompiledModule) -> None:
    target.example_inputs = source.example_inputs
    target.notes = source.notes
    target.batch_is_dynamic = source.batch_is_dynamic
    target.reads_sizes = source.reads_sizes
    target.training = source.training


def adopt(target: nn.Module, source: nn.Module) -> None:
    """Give ``target`` the direct children, parameters and buffers of ``source`` (the same objects)."""
    target._modules.update(source._modules)
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    target._non_persistent_buffers_set |= source._non_persistent_buffers_set


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph`` with its node metadata and calling convention."""
    twin, copies = empty_twin(graph), {}  # type: tuple[fx.Graph, dict[fx.Node, fx.Node]]
    for node in graph.nodes:
        copies[node] = copy_node(twin, node, copies)
    return twin


def empty_twin(graph: fx.Graph) -> fx.Graph:
    """A graph without nodes that is called as ``graph`` is."""
    twin = fx.Graph(tracer_cls=getattr(graph, "_tracer_cls", None))
    twin._codegen = copy.copy(graph._codegen)
    return twin


def copy_node(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """Append a copy of ``node``, whose arguments have copies in ``graph`` already."""
    twin = graph.create_node(node.op, node.target, (), {}, node.name, node.type)
    find: Any = copies.__getitem__
    # Arguments come afterwards: create_node would search them for symbolic sizes, half of its time.
    if node.args:
        twin.args = map_arg(node.args, find)
    if node.kwargs:
        twin.kwargs = map_arg(node.kwargs, find)
    twin.meta.update(node.meta)
    return twin


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module of the same class over the same tensors, with tables (parameters, hooks) of its own."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, set)):
            twin.__dict__[name] = value.copy()
    return twin


def mirror(model: nn.Module, leaf: Callable[[nn.Module], nn.Module] = shallow_copy) -> nn.Module:
    """The hierarchy of ``model``: containers as scopes, childless modules as copies over the same tensors.

    The copies (made by ``leaf``) let the compiled model have its own mode, hooks and masks while an optimizer
    that holds the original's parameters goes on training both.
    """
    memo: dict[int, nn.Module] = {}

    def visit(module: nn.Module, is_root: bool) -> nn.Module:
        if id(module) in memo:
            return memo[id(module)]
        if not is_root and not module._modules:
            memo[id(module)] = leaf(module)
            return memo[id(module)]
        scope = Scope(_class_name(module), module.kind if isinstance(module, Scope) else type(module))
        memo[id(module)] = scope
        adopt(scope, module)
        scope.training = module.training
        for name, child in module._modules.items():
            scope._modules[name] = None if child is None else visit(child, False)
        return scope

    return visit(model, True)


def get_tensor(root: nn.Module, name: str) -> torch.Tensor:
    """The parameter, buffer or tensor attribute of qualified ``name``."""
    *path, attribute = name.split(".")
    owner = root
    for part in path:
        owner = owner._modules.get(part) or root.get_submodule(".".join(path))  # which says what is missing
    found = owner._parameters.get(attribute)
    return cast(torch.Tensor, getattr(owner, attribute) if found is None else found)


def set_tensor(root: nn.Module, name: str, value: torch.Tensor | None) -> None:
    """Replace the parameter or buffer ``name`` (registered as what it was), or register it anew."""
    owner_name, _, attribute = name.rpartition(".")
    owner = root.get_submodule(owner_name)
    if isinstance(value, nn.Parameter) or attribute in owner._parameters:
        owner.register_parameter(attribute, value)  # type: ignore[arg-type]
    elif attribute in owner._buffers:
        owner._buffers[attribute] = value
    else:
        owner.register_buffer(attribute, value, persistent=attribute in owner.__dict__)


def free_name(module: nn.Module, prefix: str) -> str:
    """``prefix`` with the first number that no attribute of ``module`` has."""
    return next(name for i in itertools.count() if not hasattr(module, name := f"{prefix}_{i}"))


def erase_dead(graph: fx.Graph) -> None:
    """Erase every node whose result nothing uses, inputs and the output aside."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def erase_unread(graph: fx.Graph) -> None:
    """Delete ``get_attr`` nodes that nothing reads."""
    for node in reversed(list(graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for the duration; every module gets its own mode back."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
