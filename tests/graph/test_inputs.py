"""Example inputs: the forms they may be given in, and where plausible ones come from."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph.inputs import as_inputs, find_inputs


def test_every_form_of_inputs() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert as_inputs(x) == ((x,), {})
    assert as_inputs((x, y)) == ((x, y), {})
    assert as_inputs([x, y]) == ((x, y), {})
    assert as_inputs({"x": x}) == ((), {"x": x})
    assert as_inputs(UserDict(x=x)) == ((), {"x": x}), "what a tokenizer returns is one"


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Conv1d(5, 2, 3), (2, 5, 256)),
        (nn.Conv2d(3, 2, 3), (2, 3, 224, 224)),
        (nn.Conv3d(1, 2, 3), (2, 1, 8, 112, 112)),
        (nn.Linear(7, 2), (2, 7)),
        (nn.Embedding(5, 3), (2, 16)),
        (nn.GRU(6, 4), (2, 16, 6)),
        (nn.Sequential(nn.Linear(4, 4), nn.Conv1d(16, 2, 1)), (2, 16, 4)),
    ],
    ids=lambda p: type(p).__name__ if isinstance(p, nn.Module) else "",
)
def test_the_first_layer_says_what_the_input_looks_like(model: nn.Module, shape: tuple[int, ...]) -> None:
    ((x,), kwargs), words = find_inputs(model.eval())
    assert tuple(x.shape) == shape
    assert kwargs == {}
    assert str(shape) in words


@pytest.mark.parametrize("place", ["config", "default_cfg"])
def test_a_size_the_model_names_comes_first(place: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 48 * 48, 2))
    facts: Any = SimpleNamespace(image_size=48) if place == "config" else {"input_size": (3, 48, 48)}
    setattr(model, place, facts)
    assert tuple(find_inputs(model)[0][0][0].shape) == (2, 3, 48, 48)


def test_dtype_follows_the_parameters() -> None:
    assert find_inputs(nn.Linear(3, 2).double())[0][0][0].dtype == torch.float64


def test_candidates_that_fail_are_listed() -> None:
    model = nn.Sequential(nn.Flatten(0), nn.Linear(3, 2))
    with pytest.raises(CaptureError, match=r"(?s)a vector batch \(2, 3\): RuntimeError.*Pass example_inputs"):
        find_inputs(model)
    with pytest.raises(CaptureError, match="no convolution, linear or embedding layer"):
        find_inputs(nn.ReLU())
