"""The names of the seeds' algorithms, and how each runs inside somebody else's training loop.

compressor = ALGORITHMS["taylor"](model, config_list, optimizer)
module = compressor.compress()
sparsify(compressor, train)            # train(epoch): as many epochs as the algorithm asks for
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from fxcompress.errors import ConfigError, did_you_mean
from fxcompress.pruning import (
    PRUNERS,
    ADMMPruner,
    AGPPruner,
    EpochPruner,
    LinearPruner,
    LotteryTicketPruner,
    MeasuringPruner,
    MovementPruner,
    Pruner,
    SlimPruner,
)
from fxcompress.quantization import QUANTIZERS, Quantizer

ALIASES = MappingProxyType(
    {
        "taylorfo": "taylor",
        "activationapozrank": "apoz",
        "activationmeanrank": "mean_activation",
        "observer": "ptq",
    }
)
"""Names of the seeds that this project calls otherwise."""

_SCHEDULES = (AGPPruner, LinearPruner, LotteryTicketPruner, MovementPruner, ADMMPruner)


def pruners() -> dict[str, type[Pruner]]:
    """Criteria and schedules by name, those registered by users included."""
    return {**PRUNERS, **{cls.name: cls for cls in _SCHEDULES}}


def algorithm(name: object) -> type[Pruner] | type[Quantizer]:
    """The class of a pruner or quantizer, by this project's name or the seeds'.

    Raises:
        ConfigError: for another name.
    """
    known: dict[str, type[Pruner] | type[Quantizer]] = {**pruners(), **QUANTIZERS}
    found = known.get(ALIASES.get(str(name), str(name)))
    if found is None:
        names = sorted({*known, *ALIASES})
        hint = did_you_mean(str(name), names) or f"; known are {', '.join(names)}"
        raise ConfigError(f"algorithm: expected the name of a pruner or quantizer, got {name!r}{hint}")
    return found


def sparsify(compressor: Pruner | Quantizer, train: Callable[[int], None]) -> None:
    """Take an algorithm through its training: afterwards its masks are chosen.

    Args:
        compressor: after ``compress()``.
        train: ``train(epoch)`` trains the compressed module for an epoch.

    Raises:
        FxcompressError: if it measures training and nothing has been trained.
    """
    if isinstance(compressor, LotteryTicketPruner):
        for number in compressor.get_prune_iterations():
            compressor.prune_iteration_start()
            train(number)
        return
    epochs = _epochs(compressor)
    for epoch in range(epochs):
        compressor.update_epoch(epoch)
        train(epoch)
    if isinstance(compressor, (EpochPruner, ADMMPruner)):
        compressor.update_epoch(epochs)
    elif isinstance(compressor, MovementPruner):
        compressor.finish()
    elif isinstance(compressor, (SlimPruner, MeasuringPruner)):
        compressor.update_mask()  # the scales have moved; fewer steps than it waited for may have been run


def _epochs(compressor: Pruner | Quantizer) -> int:
    if isinstance(compressor, EpochPruner):
        return max((goal.end_epoch or 0 for goal in compressor.goals.values()), default=0)
    if isinstance(compressor, ADMMPruner):
        return compressor.num_iterations * compressor.epochs_per_iteration
    return 1


def with_regularizer(criterion: Callable[..., Any] | None, compressor: Any) -> Callable[..., Any] | None:
    """``criterion`` plus the term of an algorithm that has one (``slim``, ``admm``)."""
    regularizer = getattr(compressor, "regularizer", None)
    if criterion is None or regularizer is None:
        return criterion
    return lambda *args, **kwargs: criterion(*args, **kwargs) + regularizer()
