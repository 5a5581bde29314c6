"""Masks on what goes into a layer or comes out of it, honoured exactly and removed where they can be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.errors import PassError, SpeedupError
from tests.helpers import EXACT, Function, image, ready, relative_error, run, weight_shape

KEEP = torch.tensor([1.0, 0, 1, 1, 0, 1])


def body(m: Any, x: Tensor, inside: Tensor | None = None, outside: Tensor | None = None) -> Tensor:
    y = m.norm(m.a(x))
    y = y if outside is None else y * outside.view(-1, 1, 1)
    z = y if inside is None else y * inside.view(-1, 1, 1)
    result: Tensor = m.b(z.sigmoid()) + y.mean()
    return result


def model() -> nn.Module:
    return ready(
        Function(
            body, a=nn.Conv2d(3, 6, 3, padding=1), norm=nn.BatchNorm2d(6), b=nn.Conv2d(6, 2, 3, padding=1)
        )
    )


def test_an_output_mask_is_the_product_everything_reads() -> None:
    net, x = model(), image(2, 3, 5, 5)
    small = fxcompress.speedup(net, x, masks={"norm": {"output": KEEP}})
    assert relative_error(run(small, (x,)), body(net, x, outside=KEEP.double())) <= EXACT


def test_an_input_mask_is_seen_by_that_layer_only() -> None:
    net, x = model(), image(2, 3, 5, 5)
    small = fxcompress.speedup(net, x, masks={"b": {"input": KEEP}})
    expected = net.b(net.norm(net.a(x)).sigmoid() * KEEP.double().view(-1, 1, 1)) + net.norm(net.a(x)).mean()  # type: ignore[operator]
    assert relative_error(run(small, (x,)), expected) <= EXACT
    assert weight_shape(small, "b") == (2, 6, 3, 3)


def test_masked_activations_are_removed_with_what_makes_them() -> None:
    net = ready(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    x = image(2, 4)
    small = fxcompress.speedup(net, x, masks={"1": {"output": KEEP}})
    expected = net[2](net[1](net[0](x)) * KEEP.double())  # type: ignore[index]
    assert relative_error(run(small, (x,)), expected) <= EXACT
    assert weight_shape(small, "0") == (4, 4)
    assert weight_shape(small, "2") == (3, 4)


def test_single_positions_may_be_masked() -> None:
    net, x = model(), image(2, 3, 5, 5)
    mask = (torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    small = fxcompress.speedup(net, x, masks={"a": {"output": mask}})
    y = net.norm(net.a(x) * mask)  # type: ignore[operator]
    assert relative_error(run(small, (x,)), net.b(y.sigmoid()) + y.mean()) <= EXACT  # type: ignore[operator]


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ({"a": {"output": torch.ones(5)}}, PassError, r"masks\['a'\]\['output'\]: expected \[channels\]"),
        ({"a": {"output": torch.full((6,), 0.5)}}, SpeedupError, "only 0 and 1"),
        ({"": {"output": KEEP}}, PassError, "no call of ''"),
        ({"norms": {"output": KEEP}}, SpeedupError, "did you mean 'norm'"),
    ],
)
def test_what_does_not_fit_is_refused(masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fxcompress.speedup(model(), image(2, 3, 5, 5), masks=masks)
