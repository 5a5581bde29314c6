"""What a callback is given, and which of a trainer's optimizers it watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fxcompress.errors import FxcompressError
from fxcompress.training.compressor import Compressor
from fxcompress.training.optimizers import innermost, trains


def checked(pruner: Any) -> Compressor[Any]:
    """``pruner``, which has to be one, or a quantizer.

    Raises:
        FxcompressError: if it is, say, the masked module.
    """
    if not isinstance(pruner, Compressor):
        raise FxcompressError(
            f"PruningCallback: expected a pruner, such as L1FilterPruner(model, config_list), got "
            f"{type(pruner).__name__}; train what its compress() returns. A module of fxcompress.compile has "
            "its masks already, and needs no callback"
        )
    return pruner


def bind(pruner: Compressor[Any], model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Let ``pruner`` watch the first of ``optimizers`` that trains a layer it works on.

    Nothing changes where it watches one of them already; an optimizer that the trainer does not step is
    replaced.

    Raises:
        FxcompressError: if the pruner has not compressed anything, or ``model`` does not hold what it masked.
    """
    if pruner.bound_model is None:
        raise FxcompressError(
            f"PruningCallback: {type(pruner).__name__} has not compressed a model yet: call "
            "pruner.compress() and train the module it returns"
        )
    masked = {id(p) for wrapper in pruner.wrappers for p in wrapper.module.parameters()}
    if all(module is not pruner.bound_model for module in model.modules()):
        raise FxcompressError(
            f"PruningCallback: the trained {type(model).__name__} does not hold the module that "
            f"{type(pruner).__name__}.compress() returned, so it trains without masks; put that module in "
            "the place of the dense model"
        )
    candidates = [innermost(optimizer) for optimizer in optimizers]
    if not candidates or any(optimizer is pruner.optimizer for optimizer in candidates):
        return
    fitting = (o for o in candidates if trains(o, (p for p in model.parameters() if id(p) in masked)))
    pruner.use_optimizer(next(fitting, candidates[0]))
