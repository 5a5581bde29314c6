"""Rescale: channels between layers are divided by factors, and what reads them takes the factors back.

    h = relu(W1 · x + b1);   y = W2 · h    →    h' = relu((W1 / s) · x + b1 / s);   y = (W2 · s) · h'
    h = gelu(x);             y = W2 · h    →    h' = gelu(x) · (1 / s);             y = (W2 · s) · h'

Law: with positive factors the module computes what it computed. ``rescale`` adds nothing to the graph, as
``relu(h / s) = relu(h) / s`` (Nagel et al., ICCV 2019, eq. 7); ``multiply`` leaves a product where nothing
can take the division. ``s`` is ``[channels]``; rows of ``W1``, or the weight and bias of a normalization, are
divided, columns of ``W2`` multiplied. Edits in place; parameters that change are the module's own from then
on (``passes.own``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx

from fxcompress.errors import PassError
from fxcompress.graph.calls import call_of
from fxcompress.graph.constants import constant
from fxcompress.graph.module import CompiledModule, erase_dead
from fxcompress.graph.operands import add_buffer
from fxcompress.passes.links import Link, operands_to_divide, weighted
from fxcompress.passes.own import own


def rescale(module: CompiledModule, link: Link, factors: Tensor) -> tuple[str, ...]:
    """Divide the channels of ``link`` by ``factors``, float64 ``[channels]``.

    Returns:
        Names of the parameters that changed.

    Raises:
        PassError: if a factor is not positive and finite.
    """
    _check(str(link), link.channels, factors)
    factors = factors.to(_value(module, link.maker, operands_to_divide(module, link.maker)[0]).device)
    changed = []
    found = weighted(link.maker)
    for argument in operands_to_divide(module, link.maker):
        if found is not None and argument == found[1].weight:
            value = canonical_weight(module, link.maker)
            changed.append(_put(module, link.maker, value / factors.view(*value.shape[:2], 1, 1)))
        else:
            value = _value(module, link.maker, argument)
            changed.append(own(module, link.maker, argument, (value.double() / factors).to(value.dtype)))
    changed += _take_back(module, link.readers, factors)
    erase_dead(module.graph)
    module.graph.lint()
    module.recompile()
    return tuple(changed)


def multiply(
    module: CompiledModule, source: fx.Node, readers: Sequence[fx.Node], factors: Tensor
) -> tuple[str, ...]:
    """Let ``readers``, linear layers, read ``source · (1 / factors)``; others read ``source`` as it is.

    Args:
        factors: float64 ``[channels]``, along the last dimension of ``source``.

    Returns:
        Names of the parameters that changed.

    Raises:
        PassError: if a factor is not positive and finite.
    """
    facts = source.meta["tensor"]
    _check(str(source), facts.shape[-1], factors)
    changed = _take_back(module, readers, factors)
    inverse = add_buffer(module, f"{source.name}_factors", (1 / factors).to(facts.dtype), source.next)
    with module.graph.inserting_after(inverse):
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (source, inverse))
    product.meta["tensor"] = facts
    for reader in readers:
        reader.replace_input_with(source, product)
    module.graph.lint()
    module.recompile()
    return changed


def _check(where: str, channels: int, factors: Tensor) -> None:
    if factors.shape != (channels,) or not bool(((factors > 0) & factors.isfinite()).all()):
        raise PassError(
            f"{where}: expected {channels} factors, positive and finite, got {tuple(factors.shape)} "
            f"from {factors.min():g} to {factors.max():g}"
        )


def _take_back(module: CompiledModule, readers: Iterable[fx.Node], factors: Tensor) -> tuple[str, ...]:
    """Multiply the columns of the readers' weights; returns the names of these."""
    changed = []
    for reader in readers:
        value = canonical_weight(module, reader)
        groups, _, inputs, _ = value.shape
        changed.append(_put(module, reader, value * factors.view(groups, 1, inputs, 1)))
    return tuple(changed)


def canonical_weight(module: CompiledModule, node: fx.Node) -> Tensor:
    """The weight of a convolution or linear layer, float64 ``[groups, out, in, taps]``."""
    found = weighted(node)
    if found is None:
        raise PassError(f"{node}: expected a convolution or linear layer")
    call, rule = found
    return rule.canonical(call, _value(module, node, rule.weight).double())


def row_ranges(weight: Tensor) -> Tensor:
    """Largest magnitude of the weights that make each output channel, of a canonical weight."""
    return weight.abs().amax((2, 3)).flatten()


def column_ranges(weight: Tensor) -> Tensor:
    """Largest magnitude of the weights that read each input channel, of a canonical weight."""
    return weight.abs().amax((1, 3)).flatten()


def _value(module: CompiledModule, node: fx.Node, argument: str) -> Tensor:
    call = call_of(node)
    value = None if call is None else constant(module, call.get(argument))
    if value is None:
        raise PassError(f"{node}: expected a {argument} that no input reaches")
    return value


def _put(module: CompiledModule, node: fx.Node, canonical: Tensor) -> str:
    """Give a layer a weight in its own form and dtype."""
    found = weighted(node)
    if found is None:
        raise PassError(f"{node}: expected a convolution or linear layer")
    call, rule = found
    old = _value(module, node, rule.weight)
    value = rule.original(call, canonical, old.shape).to(old.dtype).contiguous()
    return own(module, node, rule.weight, value)
