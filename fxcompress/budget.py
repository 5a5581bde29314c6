"""Budgets: how sparse a config list has to be for the small model to cost what one can afford.

config_list = fit_budget(model, [{"sparsity": 0.5, "op_types": ["Conv2d"]}], x, macs=0.4)
pruned = fxcompress.compile(model, config_list, x)     # speedup leaves at most 40 % of the MACs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.compiler import compile as compile_model
from fxcompress.compiler import speedup
from fxcompress.errors import ConfigError, FxcompressError
from fxcompress.graph.capture import capture
from fxcompress.graph.cost import compare_latency, count_macs, count_parameters
from fxcompress.graph.module import CompiledModule, eval_mode

SPARSITIES = ("sparsity", "total_sparsity")
MOST = 0.98
"""The highest sparsity that is tried."""
ROUNDS = 15
"""Calls of each model that a latency is the median of."""


def fit_budget(
    model: nn.Module,
    config_list: list[dict[str, Any]],
    example_inputs: Any = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    data: Iterable[Any] | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    dependency_aware: bool = True,
    tolerance: float = 0.01,
) -> list[dict[str, Any]]:
    """Scale the sparsities of a config list so that what ``speedup`` leaves fits a budget.

    The entries' sparsities stay in proportion; their common factor is found by bisection, each step one
    pruning and one speedup of the captured model.

    Args:
        model: as for ``compile``; nothing of it changes.
        config_list: as for ``compile``; its sparsities say which layers bear how much of the cut.
        example_inputs: as for ``compile``.
        macs: the share of multiply-accumulates that may be left, in (0, 1).
        parameters: likewise of parameters.
        latency: likewise of the measured latency on this machine, in eval mode on the example inputs.
        data: batches for criteria that measure (a collection: it is read once per step).
        loss_fn: as for ``compile``.
        dependency_aware: as for ``compile``.
        tolerance: how close to the budget is close enough, as a share of the original.

    Returns:
        A config list with sparsities filled in.

    Raises:
        ConfigError: if not exactly one budget is given, or no entry has a sparsity.
        FxcompressError: if the budget cannot be met; the message says how far it goes.
    """
    kind, budget = one_budget("fit_budget", macs=macs, parameters=parameters, latency=latency)
    most = max((e[k] for e in config_list for k in SPARSITIES if isinstance(e, dict) and k in e), default=0)
    if not 0 < most < 1:
        raise ConfigError("fit_budget: expected an entry with a sparsity in (0, 1), got none; add one")
    dense = capture(model, example_inputs)
    cost = _COSTS[kind]

    def left(factor: float) -> float:
        scaled = _scaled(config_list, factor)
        pruned = compile_model(dense, scaled, data=data, loss_fn=loss_fn, dependency_aware=dependency_aware)
        return cost(speedup(pruned, verify=False), dense)

    low, high = 0.0, MOST / most
    reached = left(high)
    if reached > budget:
        raise FxcompressError(
            f"fit_budget: {kind}={budget}: even at a sparsity of {MOST} {reached:.1%} are left; "
            "select more layers, or raise the budget (fxcompress.explain shows what is selected)"
        )
    while budget - reached > tolerance and high - low > 1e-3 * high:
        middle = (low + high) / 2
        share = left(middle)
        if share <= budget:
            high, reached = middle, share
        else:
            low = middle
    return _scaled(config_list, high)


def one_budget(caller: str, **given: float | None) -> tuple[str, float]:
    """The one budget that was given: its kind, and the share of the original that may be left.

    Raises:
        ConfigError: if it is not one, or not a number in (0, 1).
    """
    budgets = {name: share for name, share in given.items() if share is not None}
    if len(budgets) != 1 or not all(0 < share < 1 for share in budgets.values()):
        *first, last = given
        kinds = f"one of {', '.join(first)} and {last}" if first else last
        raise ConfigError(f"{caller}: expected {kinds}, a number in (0, 1), got {budgets}; 0.5 leaves half")
    ((kind, share),) = budgets.items()
    return kind, share


def _scaled(config_list: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """The entries with all sparsities times ``factor``."""
    return [
        {key: min(MOST, value * factor) if key in SPARSITIES else value for key, value in entry.items()}
        for entry in config_list
    ]


def _macs(small: CompiledModule, dense: CompiledModule) -> float:
    return count_macs(small, dense.example_inputs).total / count_macs(dense, dense.example_inputs).total


def _parameters(small: CompiledModule, dense: CompiledModule) -> float:
    return count_parameters(small) / count_parameters(dense)


def _latency(small: CompiledModule, dense: CompiledModule) -> float:
    args, kwargs = dense.example_inputs
    with eval_mode(small), eval_mode(dense), torch.inference_mode():
        times = compare_latency(
            {"small": lambda: small(*args, **kwargs), "dense": lambda: dense(*args, **kwargs)}, rounds=ROUNDS
        )
    return times["small"].ratio_to(times["dense"])


_COSTS: dict[str, Callable[[CompiledModule, CompiledModule], float]] = {
    "macs": _macs,
    "parameters": _parameters,
    "latency": _latency,
}
