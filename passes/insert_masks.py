"""Insert masks: multiply parameters, activations and normalization statistics by 0/1 buffers.

    conv = self.conv(x)      →      weight = self.conv.weight * self.conv.weight_mask
                                    conv = ops.call(self.conv, x, weight=weight)

Law: the result is the model whose masked entries are zero. The masked parameter keeps its values and its
name; the mask is a buffer ``<parameter>_mask`` of the same shape beside it, so it follows ``.to()`` and
``state_dict()``. Every read of a masked parameter goes through the mask, also through tied names and
repeated calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from fxcompress import ops
from fxcompress.errors import PassError
from fxcompress.graph.calls import Aten, Call, Reference, TensorInfo, call_of, channel_dim, operand, positions
from fxcompress.graph.module import CompiledModule, erase_unread, free_name, get_tensor
from fxcompress.graph.shapes import info


def insert_masks(module: CompiledModule, masks: Mapping[str, Tensor], *, replace: bool = False) -> None:
    """Mask parameters of ``module`` in place. Masks that parameters have already are written to, not renewed.

    Args:
        masks: qualified parameter name → mask of the parameter's shape (or one that expands to it).
        replace: the masks given take the place of those the parameters had; otherwise both hold.
    """
    fresh: dict[int, str] = {}
    known = _holders(module)
    old = set(known) if replace else set()
    for name, mask in masks.items():
        parameter = get_tensor(module, name)
        full = mask.to(dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)
        if id(parameter) not in known:
            owner_name, _, attribute = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            owner.register_buffer(f"{attribute}_mask", full.clone())
            known[id(parameter)] = owner, f"{attribute}_mask"
            fresh[id(parameter)] = name
        else:
            # Masked before, or under another name it is tied to.
            owner, attribute = known[id(parameter)]
            buffer = owner.get_buffer(attribute)
            buffer.copy_(full if id(parameter) in old else buffer * full)
            old.discard(id(parameter))
    if fresh:
        _multiply(module, fresh)
        module.graph.lint()
        module.recompile()


_INSERTED = re.compile(r"(^|\.)(_activation_mask_\w+|_?statistics_mask\w*)$")
"""Buffers for masks other than those of parameters."""


def own_masks(module: CompiledModule) -> None:
    """Give a fork masks of its own, so that what is written to them does not reach its origin."""
    for name, buffer in _mask_buffers(module):
        owner, _, attribute = name.rpartition(".")
        module.get_submodule(owner)._buffers[attribute] = buffer.clone()


def accept_masks(module: CompiledModule) -> None:
    """Let ``load_state_dict`` of ``module`` take masks on parameters that have none yet.

    Which parameters are masked depends on the weights and, for masks chosen in a training loop, on the time.
    A state dict that holds masks holds all of them: where it has none for a parameter, that keeps everything.
    One without any (of a dense model) is left alone.
    """
    nn.Module.register_load_state_dict_pre_hook(module, _accept)


def _accept(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    if not isinstance(module, CompiledModule):
        return
    given = {name.removeprefix(prefix) for name in state if name.startswith(prefix)}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    masked = {name for name in given if name.removesuffix("_mask") != name}
    new = [n for n in masked if n.removesuffix("_mask") in parameters and not _has_buffer(module, n)]
    insert_masks(module, {n: torch.ones(()) for n in sorted(name.removesuffix("_mask") for name in new)})
    present = dict(_mask_buffers(module))
    if masked & (present.keys() | set(new)):
        for name in present.keys() - given:
            state[prefix + name] = torch.ones_like(present[name])
    inserted = [n for n in given - present.keys() if _INSERTED.search(n) and not _has_buffer(module, n)]
    if inserted and strict:
        errors.append(
            f"{min(inserted)!r} is a mask on an activation or on statistics, and this module has none there: "
            "load the pruner's state first (pruner.load_state_dict), or compile with the config list and the "
            "pruner of the saved module."
        )


def _has_buffer(module: nn.Module, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in module.get_submodule(owner)._buffers


def reset_masks(module: CompiledModule) -> None:
    """Let every mask of ``module``, on parameters, activations and statistics, keep everything."""
    for _, buffer in _mask_buffers(module):
        buffer.fill_(1)


def mask_names(module: CompiledModule) -> list[str]:
    """The name in the state dict of every mask of ``module``."""
    return [name for name, _ in _mask_buffers(module)]


def write_masks(module: CompiledModule, masks: Mapping[str, Tensor]) -> None:
    """Give the masks of ``module`` the values that ``read_masks`` read; others keep everything.

    Parameters without a mask get one.

    Raises:
        PassError: if there is neither a mask nor a parameter of that name.
    """
    reset_masks(module)
    known = set(mask_names(module))
    for name, mask in masks.items():
        if name in known:
            get_tensor(module, name).copy_(mask)
            continue
        try:
            insert_masks(module, {name.removesuffix("_mask"): mask}, replace=True)
        except AttributeError:
            raise PassError(
                f"mask {name!r}: this model has neither it nor what it masks; compress it with the config "
                "list and the version that the masks were saved with"
            ) from None


def read_masks(module: CompiledModule) -> dict[str, Tensor]:
    """A copy of every mask of ``module`` by its name in the state dict."""
    return {name: buffer.detach().clone() for name, buffer in _mask_buffers(module)}


def _mask_buffers(module: CompiledModule) -> Iterator[tuple[str, Tensor]]:
    """The masks that this pass inserted, by the nodes that read them."""
    names: dict[str, None] = {}
    for node in module.graph.nodes:
        if "masked_parameter" in node.meta or "activation_mask" in node.meta:
            names[str(node.args[1].target)] = None
        elif node.target in ops.RESTRICTED.values():
            names[_statistics_mask(node)] = None
    for name in names:
        yield name, get_tensor(module, name)


def _statistics_mask(node: fx.Node) -> str:
    return str(cast(fx.Node, node.args[1]).target)


def _combined(owner: nn.Module, attribute: str, mask: Tensor) -> None:
    """Let ``mask`` hold besides the buffer's own, in place where that has its shape."""
    buffer = owner.get_buffer(attribute)
    product = buffer * mask.to(dtype=buffer.dtype, device=buffer.device)
    if product.shape == buffer.shape:
        buffer.copy_(product)
    else:
        owner._buffers[attribute] = product


def _holders(module: CompiledModule) -> dict[int, tuple[nn.Module, str]]:
    """Where the masks are that parameters have already, by identity of the parameter (whichever its
    names).
    """
    return {
        id(parameter): (owner, f"{attribute}_mask")
        for owner in module.modules()
        for attribute, parameter in owner._parameters.items()
        if parameter is not None and f"{attribute}_mask" in owner._buffers
    }


def _multiply(module: CompiledModule, names: Mapping[int, str]) -> None:
    """Insert the mask-multiply nodes and lead every read through them (``names`` by tensor identity)."""
    products: dict[str, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            name = names.get(id(_tensor_or_none(module, str(node.target))))
            if name is not None and not node.meta.get("mask_source"):
                node.replace_all_uses_with(
                    _product(module, products, name, node),
                    delete_user_cb=lambda user: "masked_parameter" not in user.meta,
                )
        elif node.op == "call_module":
            _lower(module, node, names, products)
        elif node.target is ops.call:
            owner = str(node.args[0].target)
            given = {a: _product(module, products, n, node) for a, n in _masked(module, owner, names).items()}
            node.kwargs = {**node.kwargs, **given}
    erase_unread(module.graph)


def _tensor_or_none(module: CompiledModule, name: str) -> object:
    try:
        return get_tensor(module, name)
    except AttributeError:
        return None


def _masked(module: CompiledModule, path: str, names: Mapping[int, str]) -> dict[str, str]:
    """Attribute of the leaf module at ``path`` → masked parameter it is."""
    own = module.get_submodule(path)._parameters
    return {a: names[id(p)] for a, p in own.items() if p is not None and id(p) in names}


def _lower(
    module: CompiledModule, node: fx.Node, names: Mapping[int, str], products: dict[str, fx.Node]
) -> None:
    masked = _masked(module, str(node.target), names)
    if not masked:
        return
    given: dict[str, Argument] = {a: _product(module, products, n, node) for a, n in masked.items()}
    with module.graph.inserting_before(node):
        owner = module.graph.create_node("get_attr", str(node.target), (), {})
    node.op, node.target, node.args, node.kwargs = "call_function", ops.call, (owner, *node.args), given


def _product(module: CompiledModule, products: dict[str, fx.Node], name: str, before: fx.Node) -> fx.Node:
    """The node ``parameter * mask``, made in front of its first reader."""
    if name not in products:
        parameter = get_tensor(module, name)
        facts = TensorInfo(tuple(parameter.shape), parameter.dtype, (False,) * parameter.dim())
        with module.graph.inserting_before(before):
            value = module.graph.create_node("get_attr", name, (), {})
            mask = module.graph.create_node("get_attr", f"{name}_mask", (), {})
            product = module.graph.call_function(torch.ops.aten.mul.Tensor, (value, mask))
        value.meta.update(tensor=facts, mask_source=True)
        mask.meta["tensor"] = facts
        product.meta.update(tensor=facts, masked_parameter=name)
        products[name] = product
    return products[name]


def mask_activation(module: CompiledModule, source: fx.Node, user: fx.Node, mask: Tensor) -> fx.Node:
    """Multiply what ``user`` reads of ``source`` (an activation, or a weight computed from parameters) by
    ``mask``, which broadcasts to it; returns the product node.

    Where ``source`` is itself such a product for ``user`` alone, its mask takes this one besides its own.
    """
    own = source.meta.get("activation_mask")
    if own is not None and list(source.users) == [user]:
        _combined(module, own, mask)
        return source
    facts = info(source)
    if facts is None:
        raise PassError(f"{source} yields no single tensor to mask")
    dtype = facts.dtype if facts.dtype.is_floating_point else torch.float32
    # After the reader: modules of one class have the same names, whichever of their masks there are.
    name = free_name(module, f"_activation_mask_{user.name}")
    device = next((p.device for p in module.parameters()), mask.device)
    module.register_buffer(name, mask.to(device, dtype, copy=True).contiguous())
    with module.graph.inserting_before(user):
        read = module.graph.create_node("get_attr", name, (), {})
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (source, read))
    read.meta["tensor"] = TensorInfo(tuple(mask.shape), dtype, (False,) * mask.dim())
    product.meta.update(tensor=facts, activation_mask=name)
    user.replace_input_with(source, product)
    return product


def mask_layer(module: CompiledModule, layer: str, side: str, mask: Tensor) -> None:
    """Mask what goes into (``side="input"``) or comes out of (``"output"``) every call of ``layer``.

    ``mask`` is ``[channels]`` or broadcasts to the activation, whose batch it leaves open.

    Raises:
        PassError: if the graph does not call the layer, or the mask does not fit.
    """
    calls = [c for c in map(call_of, module.graph.nodes) if c is not None and c.module == layer]
    if not calls:
        raise PassError(
            f"masks[{layer!r}][{side!r}]: the captured graph has no call of {layer!r}; "
            "name a layer of torch.nn that the model calls (print(model.graph) shows them)"
        )
    for call in calls:
        node = call.node
        source = node if side == "output" else operand(call)
        facts = info(source)
        if facts is None:
            raise PassError(f"masks[{layer!r}][{side!r}]: {layer!r} has no single tensor there")
        fitted = _fitted(mask, facts, call)
        if fitted is None:
            raise PassError(
                f"masks[{layer!r}][{side!r}]: expected [channels] or a mask that broadcasts to "
                f"{list(facts.shape[1:])} per example, got {list(mask.shape)}"
            )
        if side == "input":
            mask_activation(module, source, node, fitted)
            continue
        readers = list(node.users)
        if readers:
            product = mask_activation(module, node, readers[0], fitted)
            for reader in readers[1:]:
                reader.replace_input_with(node, product)
    module.graph.lint()
    module.recompile()


def _fitted(mask: Tensor, facts: TensorInfo, call: Call) -> Tensor | None:
    """The mask as it broadcasts to the activation, or ``None`` if it does not fit."""
    rank = len(facts.shape)
    if mask.dim() == 1 and rank > 1:
        weighted = call.op in ("linear", "addmm") or call.op.startswith("conv")
        where = {channel_dim(call, rank)} if weighted else {1, rank - 1}
        places = [d for d in where if facts.shape[d] == len(mask) and not facts.dynamic[d]]
        return mask.view(-1, *[1] * (rank - 1 - places[0])) if len(places) == 1 else None
    aligned = zip(reversed(mask.shape), reversed(facts.shape), reversed(facts.dynamic), strict=False)
    fits = mask.dim() <= rank and all(m == 1 or (m == n and not dynamic) for m, n, dynamic in aligned)
    return mask if fits else None


def restrict_statistics(module: CompiledModule, node: fx.Node, mask: Tensor) -> None:
    """Make a norm, mean or variance take its statistics over the kept entries (``mask`` 1) only.

    ``mask`` has one dimension for each one the statistics run over (``[channels]`` of a GroupNorm), of its
    size or 1.
    """
    if node.target in ops.RESTRICTED.values():
        owner, _, attribute = _statistics_mask(node).rpartition(".")
        _combined(module.get_submodule(owner), attribute, mask)
        return
    call = call_of(node)
    if call is None or call.op not in ops.RESTRICTED:
        raise PassError(f"{node}: the statistics of {None if call is None else call.op} cannot be restricted")
    like = next((get_tensor(module, r) for _, r in call.refs() if isinstance(r, Reference)), torch.ones(()))
    holder: nn.Module = module if call.module is None else module.get_submodule(call.module)
    attribute = "statistics_mask" if call.module is not None else f"_statistics_mask_{node.name}"
    holder.register_buffer(attribute, mask.to(dtype=like.dtype, device=like.device))
    name = attribute if call.module is None else f"{call.module}.{attribute}"
    node.meta["unrestricted"] = (call.module, node.meta.get("aten", Aten(call.target, {**call.args})))
    target = ops.RESTRICTED[call.op]
    given = {**call.args, "input": operand(call), "mask": Reference(name)}
    node.args = tuple(_read(module, node, given.get(p)) for p in positions(target))
    node.op, node.target, node.kwargs = "call_function", target, {}
    node.meta.pop("aten", None)


def _read(module: CompiledModule, node: fx.Node, value: Any) -> Argument:
    if isinstance(value, Reference):
        with module.graph.inserting_before(node):
            return module.graph.create_node("get_attr", str(value), (), {})
    return value  # type: ignore[no-any-return]
