"""The inputs of a model: their forms, and a plausible example from its first layers."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError, FxcompressError, first_line

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
_BATCH = 2


def leaves_of(graph: fx.Graph, inputs: Inputs) -> list[Any]:
    """The values of the placeholders of a captured ``graph``, in their order."""
    info = getattr(graph._codegen, "pytree_info", None)
    return list(inputs[0] if info is None else fx_pytree.tree_flatten_spec(inputs, info.in_spec))


def as_inputs(example_inputs: Any) -> Inputs:
    """Normalize ``example_inputs``: a tensor, a tuple or list of positional inputs, or a mapping of keywords
    (a dict, or what a tokenizer returns).
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def copied(inputs: Inputs) -> Inputs:
    """Inputs to run a model on that may write to what it is given."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)  # type: ignore[no-any-return]


@contextlib.contextmanager
def naming_sizes(given: Any, example: Any) -> Iterator[None]:
    """Around a run of a captured model on ``given``, the inputs of a batch of data or the leaves of those.

    Raises:
        FxcompressError: if it does not run, and other sizes than the first are not those of ``example``.
    """
    try:
        yield
    except RuntimeError as error:
        got, expected = _sizes(given), _sizes(example)
        if [size[1:] for size in got] == [size[1:] for size in expected]:
            raise
        raise FxcompressError(
            f"data: the model does not run on a batch of sizes {_listed(got)}: {first_line(error)}. It was "
            f"captured with example inputs of sizes {_listed(expected)}, and the first dimension alone is "
            "open: give every batch the other sizes of the example inputs (a tokenizer does with "
            "padding='max_length', truncation=True, max_length=...)"
        ) from error


def _sizes(inputs: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)]


def _listed(sizes: list[tuple[int, ...]]) -> str:
    return " and ".join(map(str, dict.fromkeys(sizes)))


def find_inputs(model: nn.Module) -> tuple[Inputs, str]:
    """Return inputs the model runs on in eval mode, and a sentence saying which.

    Candidates come from the first layer with parameters: an image for a convolution, a vector for a linear
    layer, token ids for an embedding. Image sizes named by the model (``config.image_size``, ``img_size``,
    ``default_cfg``) are tried first.

    Raises:
        CaptureError: if the model runs on none of them.
    """
    tried: list[str] = []
    for inputs, words in _candidates(model):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(*copy.copy(inputs[0]), **inputs[1])
        except Exception as error:
            tried.append(
                f"  {words}: {type(error).__name__}: {str(error).splitlines()[0][:110] if str(error) else ''}"
            )
        else:
            return (
                inputs,
                f"example inputs: {words} (found from the first layers; pass example_inputs to choose)",
            )
    listing = "\n".join(tried[:6]) or "  (the model has no convolution, linear or embedding layer to go by)"
    raise CaptureError(
        f"no example input was given and {type(model).__name__} ran on none of the plausible ones:\n"
        f"{listing}\n"
        "Pass example_inputs, e.g. "
        "compile(model, config_list, example_inputs=(torch.randn(2, 3, 224, 224),))."
    )


def _candidates(model: nn.Module) -> Iterator[tuple[Inputs, str]]:
    for make in _makers(model):
        for tensor, words in make:
            name = getattr(model, "main_input_name", None)
            if isinstance(name, str):
                yield ((), {name: tensor}), f"{name}={words}"
            yield ((tensor,), {}), words


def _makers(model: nn.Module) -> Iterator[Iterator[tuple[Tensor, str]]]:
    seen: set[str] = set()
    for module in model.modules():
        kind, make = _maker(model, module)
        if make is None or kind in seen:
            continue
        seen.add(kind)
        yield make


def _maker(model: nn.Module, module: nn.Module) -> tuple[str, Iterator[tuple[Tensor, str]] | None]:
    parameter = next(module.parameters(recurse=False), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    device = parameter.device if parameter is not None else torch.device("cpu")
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and not module.transposed:
        rank = len(module.kernel_size)
        return f"conv{rank}", _images(model, module.in_channels, rank, dtype, device)
    if isinstance(module, nn.Embedding):
        return "tokens", _tokens(module.num_embeddings, device)
    if isinstance(module, nn.Linear):
        return "vector", _vectors(module.in_features, dtype, device)
    if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)):
        return "sequence", _sequences(module.input_size, dtype, device)
    return "", None


def _images(
    model: nn.Module, channels: int, rank: int, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[Tensor, str]]:
    usual = {1: [256, 64, 1024, 4096], 2: [224, 32, 28, 64, 8, 16, 96, 128, 256, 299, 384], 3: [16, 32, 64]}[
        rank
    ]
    if rank == 2 and channels == 1:
        usual = [28, 32, 8, *usual]
    for size in [*_named_sizes(model), *usual]:
        shape = (_BATCH, channels, *([size] * rank))
        if rank == 3:
            shape = (_BATCH, channels, 8, *([size * 7] * 2))
        yield torch.randn(shape, dtype=dtype, device=device), f"an image batch {shape}"


def _named_sizes(model: nn.Module) -> Iterator[int]:
    places: list[Any] = [model, getattr(model, "config", None), getattr(model, "pretrained_cfg", None)]
    places.append(getattr(model, "default_cfg", None))
    for place in places:
        for key in ("input_size", "image_size", "img_size"):
            value = place.get(key) if isinstance(place, dict) else getattr(place, key, None)
            if isinstance(value, (tuple, list)) and value:
                value = value[-1]
            if isinstance(value, int) and 0 < value <= 2048:
                yield value


def _tokens(vocabulary: int, device: torch.device) -> Iterator[tuple[Tensor, str]]:
    ids = torch.randint(0, vocabulary, (_BATCH, 16), device=device)
    yield ids, f"token ids {tuple(ids.shape)} below {vocabulary}"


def _vectors(features: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, str]]:
    for shape in ((_BATCH, features), (_BATCH, 16, features)):
        yield torch.randn(shape, dtype=dtype, device=device), f"a vector batch {shape}"


def _sequences(features: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[Tensor, str]]:
    shape = (_BATCH, 16, features)
    yield torch.randn(shape, dtype=dtype, device=device), f"a sequence batch {shape}"
