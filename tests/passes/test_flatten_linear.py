"""flatten_linear: before and after, and that nothing but the form changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.convert import convert
from fxcompress.passes.flatten_linear import flatten_linear
from fxcompress.quantization import PTQ_Quantizer
from tests.helpers import EXACT, Function, image, ready, relative_error, run, targets


def flattened(model: nn.Module, x: Tensor) -> CompiledModule:
    module = fxcompress.capture(model, x)
    flatten_linear(module, [n for n in module.graph.nodes if n.op == "call_module"])
    return module


def test_a_product_of_three_dimensions_becomes_one_of_matrices() -> None:
    model, x = ready(nn.Sequential(nn.Linear(6, 4))), image(2, 5, 6)
    module = flattened(model, x)
    assert targets(module) == ["reshape", "0", "reshape"]
    sizes = [n.args[1] for n in module.graph.nodes if n.op == "call_function"]
    assert sizes == [[-1, 6], [-1, 5, 4]]
    for more in (x, image(3, 5, 6, seed=1)):
        assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT


def test_layers_that_read_one_tensor_share_its_form() -> None:
    layers = {"q": nn.Linear(6, 4), "k": nn.Linear(6, 4)}
    model, x = ready(Function(lambda m, x: m.q(x) + m.k(x), **layers)), image(2, 3, 5, 6)
    module = flattened(model, x)
    assert targets(module) == ["reshape", "q", "reshape", "k", "reshape", "add"]
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_the_open_dimension_may_be_another_than_the_first() -> None:
    model = ready(Function(lambda m, x: m.a(x.transpose(0, 1)).transpose(0, 1), a=nn.Linear(6, 4)))
    module = flattened(model, image(2, 5, 6))
    for rows in (1, 2, 7):
        x = image(rows, 5, 6, seed=rows)
        assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize("shape", [(4, 6), (6,)])
def test_matrices_stay_as_they_are(shape: tuple[int, ...]) -> None:
    model = ready(nn.Sequential(nn.Linear(6, 4)))
    assert targets(flattened(model, image(*shape))) == ["0"]


def test_convert_flattens_the_layers_whose_operands_are_rounded() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.b(torch.tanh(m.a(x)))
        return y

    model = ready(Function(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 3))).float()
    x = image(2, 5, 6).float()
    config: list[dict[str, Any]] = [{"quant_bits": 8, "op_names": ["a"]}]
    module = PTQ_Quantizer(model, config, example_inputs=x, data=[x]).compress().eval()
    twin = convert(module)
    assert [n for n in targets(twin) if n == "reshape"] == ["reshape", "reshape"]
    assert twin.get_buffer("a_bias_integers").dtype == torch.int32
    # The bias moves by half a step of s_x · s_w at most, which is far below the outputs' own.
    assert relative_error(run(twin, (x,)), run(module, (x,))) < 1e-4
