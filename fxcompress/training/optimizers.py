"""Hooks on an optimizer: what happens in front of and behind every step that trains a model.

A step is seen the same way in every loop: gradients are there when ``before`` is called, whether the loop
made them or a closure makes them within ``optimizer.step(closure)`` (LBFGS, Lightning); a step that a
``GradScaler`` skips is none, and gradients that a fused optimizer is yet to unscale come with their scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that wrappers of other libraries (accelerate's, say) pass their steps on to."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer  # type: ignore[no-any-return]


def trains(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the optimizer holds any of the parameters."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in held for p in parameters)


def watch_steps(
    optimizer: torch.optim.Optimizer, before: Callable[[float], None], after: Callable[[], None]
) -> list[RemovableHandle]:
    """Call ``before(scale)`` when a step has its gradients (``scale`` times too large), ``after()`` when the
    parameters are updated. Removing the handles ends that.
    """

    def pre(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        # The first of `args` is the optimizer itself.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if not _skipped(optimizer):
                before(_scale(optimizer))
            return None
        told = _telling(closure, lambda: before(_scale(optimizer)))
        return ((args[0], told, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": told})

    def post(*_: Any) -> None:
        if not _skipped(optimizer):
            after()

    return [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]


def _telling(closure: Callable[[], Any], tell: Callable[[], None]) -> Callable[[], Any]:
    """The closure, which tells when it ran for the first time: LBFGS runs it again at other weights."""
    told = False

    def run() -> Any:
        nonlocal told
        loss = closure()
        if not told:
            told = True
            tell()
        return loss

    return run


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a ``GradScaler`` found gradients that are not finite; a fused optimizer then does nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _scale(optimizer: torch.optim.Optimizer) -> float:
    """What gradients are multiplied by that a fused optimizer unscales itself."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)
