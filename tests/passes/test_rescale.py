"""rescale: factors move between layers and the function stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import PassError
from fxcompress.graph.constants import Reading
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from fxcompress.passes.links import Link, link_behind
from fxcompress.passes.rescale import rescale
from tests.helpers import EXACT, Function, image, ready, relative_error, run
from tests.passes.test_links import link_of

Body = Callable[[Any, Tensor], Any]


LINKED: dict[str, tuple[Body, tuple[int, ...], dict[str, nn.Module], str]] = {
    "convolutions through ReLU": (
        lambda m, x: m.b(F.relu(m.a(x))), (2, 3, 6, 6),
        {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 5, 3, padding=1, bias=False)}, "a → b",
    ),
    "absorbed BatchNorm and pooling": (
        lambda m, x: m.b(F.max_pool2d(F.relu(m.n(m.a(x))), 2)), (2, 3, 8, 8),
        {"a": nn.Conv2d(3, 4, 3, bias=False), "n": nn.BatchNorm2d(4), "b": nn.Conv2d(4, 5, 3)}, "a → b",
    ),
    "into a depthwise convolution": (
        lambda m, x: m.b(F.relu(m.a(x))), (2, 3, 6, 6),
        {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 8, 3, padding=1, groups=4)}, "a → b",
    ),
    "out of a convolution in groups": (
        lambda m, x: m.b(m.a(x)), (2, 4, 6, 6),
        {"a": nn.Conv2d(4, 6, 1, groups=2), "b": nn.Conv2d(6, 4, 3, groups=2)}, "a → b",
    ),
    "transposed convolutions": (
        lambda m, x: m.b(F.leaky_relu(m.a(x))), (2, 4, 3, 3),
        {"a": nn.ConvTranspose2d(4, 6, 2, groups=2), "b": nn.ConvTranspose2d(6, 3, 2, groups=3)}, "a → b",
    ),
    "linear layers with two readers": (
        lambda m, x: (lambda h: m.b(h) + m.c(h))(F.dropout(F.relu(m.a(x)), 0.5, False)), (2, 7, 3),
        {"a": nn.Linear(3, 4), "b": nn.Linear(4, 5), "c": nn.Linear(4, 5)}, "a → b, c",
    ),
    "a LayerNorm read by q and k": (
        lambda m, x: (lambda h: m.b(h) + m.c(h))(m.a(x)), (2, 7, 3),
        {"a": nn.LayerNorm(3), "b": nn.Linear(3, 5), "c": nn.Linear(3, 5)}, "a → b, c",
    ),
    "a LayerNorm behind which dimensions are permuted": (
        lambda m, x: m.b(m.a(x).permute(1, 2, 0).transpose(1, 2)), (2, 7, 3),
        {"a": nn.LayerNorm(3), "b": nn.Linear(3, 5)}, "a → b",
    ),
    "a linear layer behind global pooling": (
        lambda m, x: m.b(F.adaptive_avg_pool2d(F.relu(m.a(x)), 1).flatten(1)), (2, 3, 6, 6),
        {"a": nn.Conv2d(3, 4, 3), "b": nn.Linear(4, 5)}, "a → b",
    ),
    "views of tokens": (
        lambda m, x: m.b(m.a(x).reshape(-1, 3)).reshape(x.shape[0], 7, 5), (2, 7, 3),
        {"a": nn.LayerNorm(3), "b": nn.Linear(3, 5)}, "a → b",
    ),
    "an RMSNorm": (
        lambda m, x: m.b(m.a(x)), (2, 7, 3), {"a": nn.RMSNorm(3), "b": nn.Linear(3, 5)}, "a → b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_any_positive_factors_leave_the_function_as_it_was(name: str) -> None:
    body, shape, layers, words = LINKED[name]
    model, x = ready(Function(body, **layers)), image(*shape)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    module = fxcompress.capture(model, x)
    absorb_batch_norm(module)
    link = link_of(module, "a")
    assert str(link) == words
    assert isinstance(link, Link)
    factors = image(link.channels, seed=5).exp() * 3
    changed = rescale(module, link, factors)
    assert {name.partition(".")[0] for name in changed} == set(words.replace(",", " →").split(" → "))
    for more in (x, torch.cat([x, x[:1] * 0.5])):
        assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for key in changed:
        assert module.get_parameter(key) is not dict(model.named_parameters()).get(key)


def test_factors_by_hand() -> None:
    a, b = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[8.0], [1.0]]))
        a.bias.copy_(torch.tensor([4.0, -1.0]))
        b.weight.copy_(torch.tensor([[3.0, 5.0]]))
    module = fxcompress.capture(nn.Sequential(a, nn.ReLU(), b).eval(), torch.ones(2, 1))
    link = link_of(module, "0")
    assert isinstance(link, Link)
    assert rescale(module, link, torch.tensor([4.0, 0.5]).double()) == ("0.weight", "0.bias", "2.weight")
    assert module.get_parameter("0.weight").tolist() == [[2.0], [2.0]]
    assert module.get_parameter("0.bias").tolist() == [1.0, -2.0]
    assert module.get_parameter("2.weight").tolist() == [[12.0, 2.5]]
    assert a.weight.tolist() == [[8.0], [1.0]]


class SpelledOut(nn.Module):
    """An RMSNorm as Llama writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_a_normalization_that_the_model_spells_out() -> None:
    model, x = ready(nn.Sequential(SpelledOut(), nn.Linear(3, 5))), image(2, 7, 3)
    module = fxcompress.capture(model, x)
    [maker] = [n.all_input_nodes[0] for n in module.graph.nodes if n.target == "1"]
    link = link_behind(module, maker, Reading(module))
    assert isinstance(link, Link)
    assert rescale(module, link, image(3, seed=5).exp()) == ("0.scale", "1.weight")
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_factors_have_to_be_positive() -> None:
    module = fxcompress.capture(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1)), torch.ones(2, 1))
    link = link_of(module, "0")
    assert isinstance(link, Link)
    with pytest.raises(PassError, match="0 → 1: expected 2 factors, positive and finite"):
        rescale(module, link, torch.tensor([1.0, 0.0]).double())
