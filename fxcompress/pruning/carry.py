"""Carry an optimizer over to the parameters of a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.graph.module import CompiledModule


def carry_optimizer(optimizer: torch.optim.Optimizer, before: nn.Module, after: CompiledModule) -> None:
    """Let ``optimizer`` train ``after``, what ``speedup`` made of ``before``, in place.

    Param groups keep their hyperparameters and hold the parameters of the same names; those that are gone
    leave, and one made anew (a bias that took up constants) joins the group of its layer's other parameters.
    State of a parameter's shape (momentum, Adam's moments) is sliced like it; single numbers (steps) stay; a
    parameter that is no slice of the old one, or has state of another shape, starts with none.

    Args:
        optimizer: holds parameters of ``before``, and perhaps others, which it keeps.
        before: the masked module.
        after: the smaller one.
    """
    old = dict(before.named_parameters(remove_duplicate=False))
    new = dict(after.named_parameters(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in old.items():
        names.setdefault(id(parameter), []).append(name)
    placed: dict[int, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        held: list[nn.Parameter] = []
        for parameter in group["params"]:
            own = names.get(id(parameter))
            if own is None:
                held.append(parameter)
                continue
            state = optimizer.state.pop(parameter, None)
            left = next((n for n in own if n in new), None)
            if left is None:
                continue
            held.append(new[left])
            placed[id(new[left])] = group
            sliced = None if state is None else _sliced(state, parameter, after.origin.get(left))
            if sliced is not None:
                optimizer.state[new[left]] = sliced
        group["params"] = held
    for name, parameter in new.items():
        if name not in old and id(parameter) not in placed:
            owner = after.get_submodule(name.rpartition(".")[0])
            groups = [placed[id(p)] for p in owner.parameters() if id(p) in placed]
            if groups:
                groups[0]["params"].append(parameter)
                placed[id(parameter)] = groups[0]


def _sliced(
    state: Mapping[str, Any], parameter: nn.Parameter, slices: tuple[Tensor | None, ...] | None
) -> dict[str, Any] | None:
    """The state of the kept block; ``None`` if it cannot be told."""
    if slices is None:
        return None
    result: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or (value.numel() == 1 and value.shape != parameter.shape):
            result[key] = value
        elif value.shape != parameter.shape:
            return None
        else:
            for dim, index in enumerate(slices):
                if index is not None:
                    value = value.index_select(dim, index.to(value.device))
            result[key] = value.clone()
    return result
