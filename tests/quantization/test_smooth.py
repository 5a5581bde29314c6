"""SmoothQuant: factors by hand, where they are folded, and what they are worth for outliers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule, eval_mode
from fxcompress.quantization import PTQ_Quantizer
from fxcompress.quantization.outcome import Outcome
from fxcompress.quantization.smooth import smooth, smoothing
from tests.helpers import EXACT, Function, image, ready, relative_error, run, targets


def smoothed(model: nn.Module, x: Tensor, *layers: str, alpha: float = 0.5) -> tuple[CompiledModule, Outcome]:
    module = fxcompress.capture(model, x)

    def on_data() -> None:
        with eval_mode(module), torch.no_grad():
            module(x)

    nodes = [n for n in module.graph.nodes if str(n.target) in layers]
    return module, smooth(module, nodes, on_data, alpha)


@pytest.mark.parametrize(("alpha", "expected"), [(0.5, [4.0, 0.5, 1.0]), (1.0, [16.0, 1.0, 1.0])])
def test_factors_by_hand(alpha: float, expected: list[float]) -> None:
    got = smoothing(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 2.0]), alpha)
    assert got.tolist() == expected


def test_a_layer_norm_and_its_reader_by_hand() -> None:
    norm, layer = nn.LayerNorm(2), nn.Linear(2, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([16.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, 3.0]))
        layer.weight.copy_(torch.tensor([[-1.0, 4.0]]))
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # normalized to itself, but for eps
    module, outcome = smoothed(nn.Sequential(norm, layer).eval(), x, "1")
    assert outcome.done == ("0 → 1",)
    assert outcome.changed == ("0.weight", "0.bias", "1.weight")
    # |X| is 16 and 4, |W| 1 and 4: s = 4 and 1.
    for name, expected in (("0.weight", [4.0, 1.0]), ("0.bias", [0.0, 3.0]), ("1.weight", [-4.0, 4.0])):
        torch.testing.assert_close(
            module.get_parameter(name).detach().flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-5
        )
    assert norm.weight.tolist() == [16.0, 1.0]
    assert targets(module) == ["0", "1"], "nothing is left in the graph"


class Block(nn.Module):
    """A transformer block whose normalizations stand in front."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.n1, self.n2 = norm(8), norm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n1(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h)))
        out: Tensor = x + self.down(F.relu(self.up(self.n2(x))))
        return out


NAMES = ("q", "k", "v", "o", "up", "down")


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_block_keeps_its_function(norm: Callable[[int], nn.Module]) -> None:
    model, x = ready(Block(norm)), image(2, 5, 8)
    module, outcome = smoothed(model, x, *NAMES, alpha=0.75)
    assert outcome.done == ("n1 → q, k, v", "n2 → up", "up → down")
    [(layer, reason)] = outcome.refused
    assert layer == "o"
    assert "scaled_dot_product_attention in front of it has no weight to rescale" in reason
    for more in (x, torch.cat([x, x[:1] * 3])):
        assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT
    assert [n for n in targets(module) if "observe" in n or "div" in n] == []


class PostNorm(nn.Module):
    """A block of BERT: normalizations behind, read by a residual as well, and a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.n0, self.n1, self.n2 = (nn.LayerNorm(8) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.n0(x)
        h = self.n1(h + self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h))))
        out: Tensor = self.n2(h + self.down(F.gelu(self.up(h))))
        return out


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_where_nothing_can_take_the_division_a_product_stays(alpha: float) -> None:
    model, x = ready(PostNorm()), image(2, 5, 8)
    module, outcome = smoothed(model, x, *NAMES, alpha=alpha)
    assert outcome.done == ("n0 · 1/s → q, k, v", "n1 · 1/s → up", "gelu · 1/s → down")
    assert [layer for layer, _ in outcome.refused] == ["o"], "attention averages outliers away"
    assert outcome.changed == ("q.weight", "k.weight", "v.weight", "up.weight", "down.weight")
    assert [n for n in targets(module) if "mul" in n] == ["mul"] * 3
    for more in (x, torch.cat([x, x[:1] * 3])):
        assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT


def test_the_product_by_hand() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 4.0]]))
    model = Function(lambda m, x: m.b(F.silu(x)), b=layer).eval()
    x = torch.tensor([[100.0, 25.0]])  # silu leaves them as they are, to float32
    module, _ = smoothed(model, x, "b")
    assert module.get_buffer("silu_factors").tolist() == pytest.approx([1 / 10, 1 / 2.5])
    assert module.get_parameter("b.weight").tolist() == [pytest.approx([-10.0, 10.0])]
    assert layer.weight.tolist() == [[-1.0, 4.0]]


Body = Callable[[Any, Tensor], Any]
REFUSED: dict[str, tuple[Body, str]] = {
    "the model's input": (lambda m, x: m.b(x), "has no weight to rescale"),
    "a sum": (lambda m, x: m.b(m.a(x) + x), "add in front of it has no weight"),
    "a shared weight": (lambda m, x: m.b(F.gelu(m.b(x))), "weight of b is shared with other calls"),
    "a softmax": (lambda m, x: m.b(m.a(x).softmax(-1)), "softmax in front of it has no weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_worth_a_product_is_refused_with_the_reason(name: str) -> None:
    body, reason = REFUSED[name]
    model, x = ready(Function(body, a=nn.Linear(8, 8), b=nn.Linear(8, 8))), image(2, 5, 8)
    module, outcome = smoothed(model, x, "b")
    assert (outcome.done, outcome.changed) == ((), ())
    assert re.search(reason, outcome.refused[-1][1]), outcome.refused
    assert torch.equal(run(module, (x,)), run(model, (x,)))


def test_other_readers_of_a_norm_keep_what_they_read() -> None:
    layers = {"n": nn.LayerNorm(8), "b": nn.Linear(8, 8), "c": nn.Conv1d(8, 8, 1)}
    model = ready(Function(lambda m, x: (lambda h: m.b(h).mT + m.c(h.mT))(m.n(x)), **layers))
    x = image(2, 5, 8)
    module, outcome = smoothed(model, x, "b")
    assert (outcome.done, outcome.changed) == (("n · 1/s → b",), ("b.weight",))
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_outliers_behind_a_layer_norm_need_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    scale, weight = model.get_parameter("0.weight"), model.get_parameter("1.weight")
    with torch.no_grad():
        for outlier in (3, 11):
            scale[outlier] = 100.0
            weight[:, outlier] /= 100
    x, errors = torch.randn(64, 16), []
    for alpha in (None, 0.5):
        quantizer = PTQ_Quantizer(model, [{"quant_bits": 8}], example_inputs=x, data=iter([x]), smooth=alpha)
        errors.append(relative_error(run(quantizer.compress().eval(), (x,)), run(model, (x,))))
    assert quantizer.outcomes["smooth"].done == ("0 → 1", "1 → 3")
    assert errors[1] < errors[0] / 10
