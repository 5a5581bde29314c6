"""What a batch of a data loader says to a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import FxcompressError
from fxcompress.graph.inputs import Inputs, naming_sizes
from fxcompress.graph.module import CompiledModule, eval_mode


def inputs_of(module: CompiledModule, batch: Any) -> Inputs:
    """Copies of the model's inputs in a batch, on the model's device.

    A tensor is the one input; of a tuple or list the leading items are, as many as the example inputs; of a
    mapping the items that are named as the inputs of the example are.

    Raises:
        FxcompressError: if the batch does not hold them.
    """
    args, kwargs = module.example_inputs
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    taken: Inputs | None = None
    if isinstance(batch, Mapping):
        names = list(kwargs) or module.argument_names[: len(args)]
        if names and all(name in batch for name in names):
            taken = (), {name: batch[name] for name in names}
    elif isinstance(batch, Tensor):
        if len(args) + len(kwargs) == 1:
            taken = ((batch,), {}) if args else ((), dict.fromkeys(kwargs, batch))
    elif isinstance(batch, (tuple, list)) and not kwargs and len(batch) >= len(args):
        taken = tuple(batch[: len(args)]), {}
    if taken is None:
        told = ", ".join(kwargs or module.argument_names[: len(args)])
        expected = f"{len(args)} inputs ({told})" if args else f"the keyword inputs {told}"
        raise FxcompressError(
            f"data: expected batches of tensors that hold {expected} of the model, got {_described(batch)}; "
            "pass data whose batches begin with the model's inputs, or a dict of its keyword inputs"
        )
    return pytree.tree_map(lambda x: x.to(device, copy=True) if isinstance(x, Tensor) else x, taken)  # type: ignore[no-any-return]


def run_on(module: CompiledModule, batch: Any) -> Any:
    """What ``module`` returns for a batch.

    Raises:
        FxcompressError: if the batch does not hold its inputs, or they have other sizes than it runs on.
    """
    given = inputs_of(module, batch)
    with naming_sizes(given, module.example_inputs):
        return module(*given[0], **given[1])


def run_batches(module: CompiledModule, data: Iterable[Any]) -> None:
    """Run ``module`` on the inputs in every batch of ``data``, in eval mode, without gradients.

    Raises:
        FxcompressError: if it does not run on a batch.
    """
    with eval_mode(module), torch.no_grad():
        for batch in data:
            run_on(module, batch)


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "a dict of " + ", ".join(map(str, batch))
    return f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
