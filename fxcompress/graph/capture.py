"""Capture: a model becomes a ``CompiledModule`` that trains, evaluates and prints like the original.

``torch.export`` (non-strict, eval mode, dynamic batch) records ATen operators; this module then gives back
what export loses: in-place operators become functional ones with their reads redirected, calls of known leaf
modules become ``call_module`` nodes on the model's own modules, and dropout and BatchNorm calls inlined from
a subclass follow ``train()``/``eval()`` again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.boundary import output_of, uncapturable
from fxcompress.graph.canonical import canonicalize
from fxcompress.graph.functionalize import NotFunctional, functionalize, restore_batch_norm
from fxcompress.graph.inputs import Inputs, as_inputs, find_inputs
from fxcompress.graph.module import CompiledModule, eval_mode, mirror
from fxcompress.graph.quiet import quiet
from fxcompress.graph.raising import (
    LeafCalls,
    fixed_to_eval,
    follow_training_flag,
    raise_leaf_modules,
    watch_leaf_calls,
)
from fxcompress.graph.regions import inline_regions
from fxcompress.graph.shapes import annotate, is_open
from fxcompress.graph.sizes import SizeReads

_IGNORED = (
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten.sym_constrain_range.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
    torch.ops.aten._assert_tensor_metadata.default,
)


def capture(model: nn.Module, example_inputs: Any = None) -> CompiledModule:
    """Capture ``model`` as a graph over its own modules and parameters.

    Args:
        model: any module; its class, code and parameters are left alone, its mode is restored.
        example_inputs: a tensor, a tuple of positional inputs or a dict of keyword inputs; found from the
            first layers when omitted. The first dimension is taken as the batch and stays dynamic where the
            model allows it.

    Raises:
        CaptureError: names the line of the model that cannot be captured and what to do.
    """
    if isinstance(model, CompiledModule):
        return model.fork()
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {type(model).__name__}")
    with eval_mode(model):
        notes: list[str] = []
        if example_inputs is None:
            inputs, words = find_inputs(model)
            notes.append(words)
        else:
            inputs = as_inputs(example_inputs)
        traced = _export(model, inputs)
    if not traced.batch_is_dynamic:
        notes.append("the batch size is fixed: the model did not export with a dynamic first dimension")
    compiled = _compiled(model, traced.program, traced.calls)
    compiled.example_inputs = inputs
    compiled.batch_is_dynamic, compiled.reads_sizes = traced.batch_is_dynamic, traced.reads_sizes
    compiled.notes = (*notes, *compiled.notes)
    compiled.train(model.training)
    return compiled


def _compiled(model: nn.Module, exported: torch.export.ExportedProgram, calls: LeafCalls) -> CompiledModule:
    try:
        graph = functionalize(_plain_graph(exported))
    except NotFunctional:
        # Writes through what may be a view or a copy: let torch functionalize, at the cost of a second trace.
        graph = _plain_graph(exported.run_decompositions({}))
        restore_batch_norm(graph)
        graph = functionalize(graph)
    annotate(graph)
    canonicalize(graph)
    root = mirror(model)
    _adopt_constants(root, graph, exported)
    raise_leaf_modules(graph, model, calls)
    notes = follow_training_flag(graph, root, model)
    compiled = CompiledModule(root, graph, model._get_name())
    compiled.notes = (*notes, *fixed_to_eval(model, calls))
    graph.lint()
    return compiled


@dataclasses.dataclass(frozen=True)
class _Traced:
    """A trace, and what was seen while it was made."""

    program: torch.export.ExportedProgram
    calls: LeafCalls
    batch_is_dynamic: bool
    reads_sizes: bool


def _export(model: nn.Module, inputs: Inputs) -> _Traced:
    """Export with a dynamic batch, or failing that with fixed shapes.

    Where both fail the model does not learn that it is traced: some have a path for that case that is broken.
    """
    args, kwargs = _with_batch_of_two(inputs)
    output = output_of(model, inputs)
    failure: Exception | None = None
    attempts = [
        (True, args, kwargs, True),
        (False, *inputs, True),
        (True, args, kwargs, False),
        (False, *inputs, False),
    ]
    for dynamic, a, k, known in attempts:
        try:
            shapes = _dynamic_shapes(model, a, k) if dynamic else None
            if dynamic and not pytree.tree_leaves(shapes):
                continue
            reads = SizeReads()
            views = _ViewsAsReshapes() if "Cannot view" in str(failure) else contextlib.nullcontext()
            with watch_leaf_calls(model) as calls, torch.enable_grad(), _tracing(known), views, reads:
                program = torch.export.export(model, a, k, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            if failure is None and "Cannot view" in str(error):
                attempts.insert(1, (dynamic, a, k, True))
            failure = failure or error
        else:
            follows = dynamic and _follows_batch(program)
            if follows or a is inputs[0] or not dynamic:
                return _Traced(program, calls, follows, reads.found)
            # A batch of two that was made from one, and that the graph insists on, is none of the user's.
    if failure is None:
        raise CaptureError("the model was given no tensor input; pass example_inputs")
    raise uncapturable(model, inputs, output, failure) from failure


def _follows_batch(program: torch.export.ExportedProgram) -> bool:
    """Whether the first dimension of an input was left open."""
    inputs = set(program.graph_signature.user_inputs)
    values = (n.meta.get("val") for n in program.graph.find_nodes(op="placeholder") if n.name in inputs)
    return any(isinstance(v, Tensor) and v.dim() > 0 and is_open(v.shape[0]) for v in values)


@contextlib.contextmanager
def _tracing(known: bool) -> Iterator[None]:
    """Torch without what stands in the way of a trace: log messages and looks at values.

    ``nn.Transformer`` compares its masks with a causal one only to choose a kernel; a distribution checks
    its parameters only to raise. ``known``: whether ``torch.compiler.is_compiling()`` tells of the trace.
    """
    from torch import _dynamo  # takes as long to import as torch, and only a trace needs it

    compiling = torch.compiler.is_compiling
    detect, validate = transformer._detect_is_causal_mask, Distribution._validate_args
    transformer._detect_is_causal_mask = _said_to_be_causal
    Distribution.set_default_validate_args(False)
    if not known:
        torch.compiler.is_compiling = lambda: False
    try:
        # Looking up the cache of fake results costs more than the results do.
        with quiet(), _WithoutGuards(), _dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        torch.compiler.is_compiling = compiling
        transformer._detect_is_causal_mask = detect
        Distribution.set_default_validate_args(validate)


def _said_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


class _WithoutGuards(TorchFunctionMode):
    """``take_along_dim`` as the ``gather`` it is: its own broadcasting fixes the batch size while tracing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.take_along_dim, Tensor.take_along_dim):
            return _take_along_dim(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return torch.gather(input.flatten(), 0, indices.flatten())

    def sizes(a: Tensor, b: Tensor) -> list[int]:
        """Sizes of 1 as those of ``b``; which sizes are 1 is known without asking for those of the batch."""
        one = [isinstance(size, int) and size == 1 for size in a.shape]
        return [b.shape[d] if one[d] and d != dim % a.dim() else -1 for d in range(a.dim())]

    return input.expand(sizes(input, indices)).gather(dim, indices.expand(sizes(indices, input)))


class _ViewsAsReshapes(TorchFunctionMode):
    """``x.view(…)`` as ``x.reshape(…)``: the same where the view is valid.

    Tracing may take the strides of a result (of BatchNorm on a permuted tensor, say) for others than the
    operator really gives, and then refuses a view that runs.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view and not any(isinstance(a, torch.dtype) for a in args):
            func = Tensor.reshape
        return func(*args, **(kwargs or {}))


def _dynamic_shapes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """First dimension dynamic for every tensor, by the parameter names of ``forward``."""

    def of(value: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(value, Tensor) and value.dim() > 0 else None

    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    return {name: pytree.tree_map(of, value) for name, value in bound.items()}


def _with_batch_of_two(inputs: Inputs) -> Inputs:
    """Repeat a batch of one: export would otherwise specialize the graph to size 1."""
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim() > 0]
    if not leaves or any(x.shape[0] != 1 for x in leaves):
        return inputs
    repeat = lambda x: torch.cat([x, x]) if isinstance(x, Tensor) and x.dim() > 0 else x  # noqa: E731
    args, kwargs = pytree.tree_map(repeat, inputs)
    return args, kwargs


def _plain_graph(exported: torch.export.ExportedProgram) -> fx.Graph:
    """The exported graph with parameters as ``get_attr`` nodes, without guards and assertions."""
    module = exported.module(check_guards=False)
    inline_regions(module)
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        guard = node.op == "call_module" or node.target in _IGNORED
        unread_attribute = node.op == "get_attr" and not node.users
        if (guard and not node.users) or unread_attribute:
            graph.erase_node(node)
    return graph


def _adopt_constants(root: nn.Module, graph: fx.Graph, exported: torch.export.ExportedProgram) -> None:
    """Register tensors the graph reads that are no parameter or buffer of the model."""
    known = {name for name, _ in root.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in root.named_buffers(remove_duplicate=False)}
    for node in graph.find_nodes(op="get_attr"):
        if node.target in known:
            continue
        value = exported.constants.get(node.target)
        if value is None:
            value = exported.state_dict.get(node.target)
        if not isinstance(value, Tensor):
            raise CaptureError(f"the graph reads {node.target!r}, which is not a tensor of the model")
        name = f"_constant_{str(node.target).replace('.', '_')}"
        root.register_buffer(name, value.detach(), persistent=False)
        node.target = name
