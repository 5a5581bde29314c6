"""Shrink: remove the slices that need not be kept, physically.

    conv1: Conv2d(3, 64)  →  Conv2d(3, 32);   view(x, [n, 64, -1])  →  view(x, [n, 32, -1])

Law: every node of the result equals the kept block of its original value. Weights, biases, statistics,
embeddings and buffers are sliced along every axis; literal sizes and module attributes follow; what removed
constant channels contributed goes into biases or one carrier channel (``rules.contraction``). The module is
edited in place; its parameters become copies, so the model it was made from stays as it is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxcompress.graph.calls import Reference, TensorInfo, call_of
from fxcompress.graph.module import CompiledModule, Scope, erase_unread, get_tensor
from fxcompress.graph.shapes import info
from fxcompress.rules import registry
from fxcompress.rules.axes import Axis, Bools
from fxcompress.rules.flow import Flow
from fxcompress.rules.rewrite import Shrink
from fxcompress.rules.values import Values, uniform_slices

Slices = tuple[Tensor | None, ...]
"""Per dimension the indices that are kept, ``None`` for all."""


@dataclass(frozen=True)
class Shrunk:
    """What a round of shrinking did besides removing slices."""

    folded: bool
    """Constants were folded into parameters, which rounds them to the parameters' dtype once more."""
    again: bool
    """Another round may remove more."""
    slices: dict[str, Slices]
    """Parameter → per dimension the slices it consists of now; those of another shape are missing."""


def shrink(module: CompiledModule, flow: Flow, values: Values, kept: dict[int, Bools]) -> Shrunk:
    """Remove everything ``kept`` leaves out of ``module``, whose masks are baked (``bake_masks``)."""
    editor = Shrink(module, flow, values, kept)
    editor.again = _more_is_uniform(editor)
    for node in list(module.graph.nodes):
        call = call_of(node)
        rule = None if call is None else registry.rule_for(call)
        if call is None or rule is None or str(node) in flow.map.unruled.get(call.op, ()):
            continue
        refs = [ref for _, ref in call.refs() if ref in flow.map.of or isinstance(ref, Reference)]
        several = [a for axes in flow.map.several.get(node, ()) for a in axes or ()]
        outputs = [node] if node in flow.map.of else []
        if (
            editor.changed(*refs, *outputs)
            or not all(editor.keeps_all(a) for a in several)
            or call.get("mask")
        ):
            rule.shrink(call, editor)
    editor.again |= any(map(editor.loses_a_factor, flow.map.relations))
    for node in [node for node in module.graph.nodes if "activation_mask" in node.meta]:
        _drop_if_full(editor, node)
    for node in editor.identities:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        module.graph.erase_node(node)
    erase_unread(module.graph)
    slices = _slice_tensors(editor)
    _update_shapes(editor)
    _drop_unused(module)
    module.graph.lint()
    module.recompile()
    return Shrunk(editor.folded, editor.again, slices)


def _more_is_uniform(editor: Shrink) -> bool:
    """Whether a known tensor has slices that are constant in what is left of it, and were not before."""
    for ref, dim in editor.values.asked():
        value = editor.values.known(ref)
        if value is None or not editor.changed(ref):
            continue
        before = editor.values.slices(ref, dim)
        after = uniform_slices(editor.block(value, editor.axes(ref)), dim)
        if after is None:
            continue
        if before is None:
            return True
        before = editor.block(before, (editor.axes(ref)[dim],))
        if bool((before.isnan() & ~after.isnan()).any()):
            return True
    return False


def _drop_if_full(editor: Shrink, node: fx.Node) -> None:
    """An activation mask that keeps everything still there is no operation."""
    name = node.meta["activation_mask"]
    mask = get_tensor(editor.module, name)
    if bool((editor.block(mask, editor.axes(Reference(name))) != 0).all()):
        source = node.args[0]
        if not isinstance(source, fx.Node):
            raise TypeError(f"{node}: an activation mask multiplies a node")
        node.replace_all_uses_with(source)
        editor.graph.erase_node(node)


def _slice_tensors(editor: Shrink) -> dict[str, Slices]:
    """Replace every parameter and buffer by a copy of its kept block; tied ones stay tied."""
    slices: dict[str, Slices] = {}
    slots: dict[int, list[tuple[dict[str, Any], str, str]]] = defaultdict(list)
    tensors: dict[int, Tensor] = {}
    for path, owner in editor.module.named_modules(remove_duplicate=False):
        for table in (owner._parameters, owner._buffers):
            for attribute, tensor in table.items():
                if tensor is not None:
                    slots[id(tensor)].append((table, attribute, f"{path}.{attribute}".lstrip(".")))
                    tensors[id(tensor)] = tensor
    for key, aliases in slots.items():
        old = tensors[key]
        reference = editor.flow.canonical(Reference(aliases[0][2]))
        edited = editor.edited(Reference(str(reference)))
        value = old.detach() if edited is None else edited
        axes = editor.axes(reference)
        new = editor.block(value, axes)
        kept = tuple(None if editor.keeps_all(axis) else editor.index(axis) for axis in axes)
        new = new.clone() if new.data_ptr() == old.data_ptr() else new
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
        for table, attribute, name in aliases:
            table[attribute] = new
            if value.shape == old.shape:
                slices[name] = kept
    return slices


def after(first: Slices, then: Slices) -> Slices:
    """The slices of what was there before ``first`` that are left after ``then``."""
    return tuple(b if a is None else a if b is None else a[b] for a, b in zip(first, then, strict=True))


def _update_shapes(editor: Shrink) -> None:
    for node in editor.graph.nodes:
        facts = info(node)
        if node.op == "get_attr" and facts is not None:
            shape = tuple(get_tensor(editor.module, str(node.target)).shape)
            node.meta["tensor"] = TensorInfo(shape, facts.dtype, (False,) * len(shape))
        if facts is not None and node in editor.map.of:
            node.meta["tensor"] = _new_info(facts, editor.map.of[node], editor)
        several = editor.map.several.get(node)
        if several is not None:
            node.meta["tensor"] = tuple(
                t if a is None else _new_info(t, a, editor)
                for t, a in zip(node.meta["tensor"], several, strict=False)
            )


def _new_info(old: TensorInfo, axes: tuple[Axis, ...], editor: Shrink) -> TensorInfo:
    return TensorInfo(tuple(editor.count(a) for a in axes), old.dtype, old.dynamic)


def _drop_unused(module: CompiledModule) -> None:
    """Delete modules the graph does not call and tensors it does not read, by whichever of their names."""
    called: set[int] = set()
    used = {id(module)}
    read: set[tuple[int, str]] = set()
    for node in module.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        owner: nn.Module = module
        for part in str(node.target).split("."):
            child = owner._modules.get(part)
            if child is None:
                read.add((id(owner), part))
                break
            owner = child
            used.add(id(owner))
        else:
            called.add(id(owner))
    for owner in list(module.modules()):
        for name, child in list(owner._modules.items()):
            if id(child) not in used:
                del owner._modules[name]
        if id(owner) in called:
            if (id(owner), "statistics_mask") not in read:
                owner._buffers.pop("statistics_mask", None)
            continue
        for table in (owner._parameters, owner._buffers):
            for attribute in [a for a in table if (id(owner), a) not in read]:
                if table is owner._parameters and not isinstance(owner, Scope):
                    table[attribute] = None  # a layer prints whether it has a bias
                else:
                    del table[attribute]
