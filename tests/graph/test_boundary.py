"""What goes into a model and comes out of it: what no graph can hold is named, with a remedy."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import CaptureError
from tests.comparing import relative_error, run
from tests.helpers import EXACT, image, ready


class Cache:
    """A class that pytree does not know."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Generating(nn.Module):
    """Returns a cache as models of language do, by keyword or in a tuple; takes one, too."""

    def __init__(self, form: str = "dict", use_cache: bool = True) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(4, 3), form
        self.config = SimpleNamespace(use_cache=use_cache)

    def forward(self, x: Tensor, past: Cache | None = None) -> Any:
        logits = self.layer(x if past is None else x + past.keys)
        if not self.config.use_cache:
            return {"logits": logits}
        if self.form == "dict":
            return {"logits": logits, "past": Cache(logits)}
        return (logits, Cache(logits)) if self.form == "tuple" else Cache(logits)


@pytest.mark.parametrize(
    ("form", "named"), [("dict", r"'past' \(Cache\)"), ("tuple", "Cache"), ("alone", "Cache")]
)
def test_an_output_that_no_graph_holds_is_named(form: str, named: str) -> None:
    words = rf"^Generating cannot be .*: it returns {named}, and .*; set model\.config\.use_cache = False$"
    with pytest.raises(CaptureError, match=words):
        fxcompress.capture(Generating(form), image(2, 4).float())


def test_a_model_without_such_a_setting_is_told_to_return_less() -> None:
    with pytest.raises(CaptureError, match=r"it returns Cache, .*; let it return its tensors alone$"):
        fxcompress.capture(Returning(Cache), image(2, 4).float())


class Returning(nn.Module):
    """Returns what ``make`` makes of a layer's output, and has no config."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(4, 3), (make,)

    def forward(self, x: Tensor) -> Any:
        return self.make[0](self.layer(x))


def test_without_its_cache_the_model_is_captured() -> None:
    model = ready(Generating(use_cache=False))
    x = image(2, 4)
    captured = fxcompress.capture(model, x)
    assert relative_error(run(captured, (x,)), run(model, (x,))) <= EXACT


def test_an_input_that_no_graph_holds_is_named() -> None:
    model = Generating(use_cache=False)
    x = image(2, 4).float()
    words = r"^Generating cannot be .*: it takes 'past' \(Cache\), and .*; leave it out of example_inputs"
    with pytest.raises(CaptureError, match=words):
        fxcompress.capture(model, {"x": x, "past": Cache(x)})
    with pytest.raises(CaptureError, match=r"it takes Cache, and .*register_dataclass$"):
        fxcompress.capture(model, (x, Cache(x)))


@dataclass
class Logits:
    """An output class of the user's own."""

    logits: Tensor
    size: int


def test_a_dataclass_among_the_outputs_is_held() -> None:
    model = ready(Returning(lambda y: Logits(y, y.shape[1])))
    x = image(2, 4)
    got = fxcompress.capture(model, x)(x)
    assert isinstance(got, Logits)
    assert got.size == 3
    assert relative_error(got.logits, run(model, (x,)).logits) <= EXACT


def test_inputs_without_a_tensor_are_named() -> None:
    lists = UserDict(x=[[1.0, 2.0, 3.0, 4.0]], past=None)
    words = r"(?s)does not run on .*\nexample_inputs hold no tensor \(x: list, past: NoneType\)\. .*='pt'\.$"
    with pytest.raises(CaptureError, match=words):
        fxcompress.capture(Generating(), lists)
    with pytest.raises(CaptureError, match=r"hold no tensor \(float\)"):
        fxcompress.capture(Generating(), 1.5)


def test_the_remedy_says_how_inputs_are_passed() -> None:
    x = torch.ones(2, 5)
    with pytest.raises(CaptureError, match=r"model\(\*example_inputs\) accepts\.$"):
        fxcompress.capture(Generating(), x)
    with pytest.raises(CaptureError, match=r"model\(\*\*example_inputs\) accepts\.$"):
        fxcompress.capture(Generating(), {"x": x})


def test_what_a_tokenizer_returns_is_taken_as_keyword_inputs() -> None:
    model = ready(Returning(lambda y: y))
    encoding = UserDict(x=image(2, 4))
    captured = fxcompress.capture(model, encoding)
    assert captured.example_inputs == ((), dict(encoding))
    assert relative_error(captured(**encoding), model(**encoding)) <= EXACT
