"""Placement: a tensor is rounded once, where integer kernels need it, and nowhere within one kernel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxcompress
from fxcompress import ops
from fxcompress.quantization import QAT_Quantizer
from tests.helpers import Function, image, ready

Body = Callable[[Any, Tensor], Any]


def rounded(
    body: Body, shape: tuple[int, ...], entries: list[dict[str, Any]], **layers: nn.Module
) -> set[str]:
    """What is rounded, weights left out: the operator that made each tensor → who reads it rounded."""
    x = image(*shape).float()
    model = ready(Function(body, **layers)).float()
    module = QAT_Quantizer(model, entries, example_inputs=x).compress()
    found = set()
    for node in module.graph.find_nodes(op="call_function", target=ops.fake_quantize):
        source, owner = node.all_input_nodes
        if "_weight" not in str(owner.target):
            readers = sorted(_label(user) for user in node.users)
            found.add(f"{_label(source)} → {', '.join(readers)}")
    return found


def _label(node: fx.Node) -> str:
    if node.target is ops.call:
        return str(node.all_input_nodes[0].target)
    name = getattr(node.target, "__name__", str(node.target))
    return node.op if node.op in ("placeholder", "output") else name.partition(".")[0]


ALL = [{"quant_bits": 8}]


def convs(*widths: int) -> dict[str, nn.Module]:
    pairs = enumerate(pairwise(widths), 1)
    return {f"c{i}": nn.Conv2d(a, b, 3, padding=1) for i, (a, b) in pairs}


CASES: dict[str, tuple[Body, tuple[int, ...], list[dict[str, Any]], dict[str, nn.Module], set[str]]] = {
    "a residual block": (
        lambda m, x: m.c3(F.relu(m.c2(F.relu(m.n1(m.c1(x)))) + x)),
        (2, 4, 6, 6), ALL, {**convs(4, 4, 4, 4), "n1": nn.BatchNorm2d(4)},
        {"placeholder → add, c1", "relu → c2", "c2 → add", "relu → c3", "c3 → output"},
    ),
    "relu6 belongs to its convolution": (
        lambda m, x: m.c2(F.relu6(m.c1(x))), (2, 3, 6, 6), ALL, convs(3, 4, 4),
        {"placeholder → c1", "relu6 → c2", "c2 → output"},
    ),
    "max pooling keeps the grid of its input": (
        lambda m, x: m.c2(F.max_pool2d(F.relu(m.c1(x)), 2)), (2, 3, 6, 6), ALL, convs(3, 4, 4),
        {"placeholder → c1", "relu → max_pool2d", "c2 → output"},
    ),
    "pooling between layers joins, and the last linear layer gives floats": (
        lambda m, x: m.fc(F.adaptive_avg_pool2d(F.relu(m.c1(x)), 1).flatten(1)),
        (2, 3, 6, 6), ALL, {**convs(3, 4), "fc": nn.Linear(4, 2)},
        {"placeholder → c1", "relu → adaptive_avg_pool2d", "adaptive_avg_pool2d → flatten"},
    ),
    "a residual stream that a LayerNorm reads stays float": (
        lambda m, x: m.b(m.n(m.a(x) + x)), (2, 3, 8), ALL,
        {"a": nn.Linear(8, 8), "n": nn.LayerNorm(8), "b": nn.Linear(8, 4)},
        {"placeholder → a", "n → b"},
    ),
    "concatenation of what is quantized": (
        lambda m, x: m.c3(torch.cat([F.relu(m.c1(x)), F.relu(m.c2(x))], 1)), (2, 3, 6, 6), ALL,
        {"c1": nn.Conv2d(3, 4, 1), "c2": nn.Conv2d(3, 4, 1), "c3": nn.Conv2d(8, 2, 1)},
        {"placeholder → c1, c2", "relu → cat", "cat → c3", "c3 → output"},
    ),
    "a gate of squeeze and excitation": (
        lambda m, x: m.c3((lambda y: y * torch.sigmoid(m.c2(F.adaptive_avg_pool2d(y, 1))))(F.relu(m.c1(x)))),
        (2, 3, 6, 6), ALL, {"c1": nn.Conv2d(3, 4, 1), "c2": nn.Conv2d(4, 4, 1), "c3": nn.Conv2d(4, 2, 1)},
        {
            "placeholder → c1", "relu → adaptive_avg_pool2d, mul", "adaptive_avg_pool2d → c2", "c2 → sigmoid",
            "sigmoid → mul", "mul → c3", "c3 → output",
        },
    ),
    "an excluded operator does not join": (
        lambda m, x: m.c2(F.relu(m.c1(x) + x)), (2, 4, 6, 6),
        [*ALL, {"exclude": True, "op_types": ["add"]}], convs(4, 4, 4),
        {"placeholder → c1", "c1 → add", "relu → c2", "c2 → output"},
    ),
    "inputs alone where the config says so": (
        lambda m, x: m.c2(F.relu(m.c1(x))), (2, 3, 6, 6),
        [{"quant_bits": 8, "quant_types": ["weight", "input"]}], convs(3, 4, 4),
        {"placeholder → c1", "relu → c2"},
    ),
    "outputs alone, behind their ReLU": (
        lambda m, x: m.c2(F.relu(m.c1(x))) + m.c3(x), (2, 3, 6, 6),
        [{"quant_bits": 8, "quant_types": ["output"], "op_names": ["c1", "c3"]}],
        {"c1": nn.Conv2d(3, 4, 1), "c2": nn.Conv2d(4, 4, 1), "c3": nn.Conv2d(3, 4, 1)},
        {"relu → c2", "c3 → add"},
    ),
    "a functional operator by name": (
        lambda m, x: m.a(x) @ m.b(x).mT, (2, 5, 8),
        [{"quant_bits": 8, "quant_types": ["input"], "op_types": ["matmul"]}],
        {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)},
        {"a → matmul", "b → mT"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_which_tensors_are_rounded(name: str) -> None:
    body, shape, entries, layers, expected = CASES[name]
    assert rounded(body, shape, entries, **layers) == expected


def test_a_tensor_that_two_layers_read_is_rounded_once() -> None:
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    model = ready(Function(lambda m, x: m.a(x) + m.b(x), **layers)).float()
    x = image(3, 4).float()
    quantizer = QAT_Quantizer(model, [{"quant_bits": 8}], example_inputs=x)
    quantizer.compress()
    assert quantizer.quantizers_of("a")["input"] is quantizer.quantizers_of("b")["input"]
    assert quantizer.quantizers_of("a").keys() == {"input", "weight"}


def test_layers_with_bits_of_their_own_read_grids_of_their_own() -> None:
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    model = ready(Function(lambda m, x: m.a(x) + m.b(x), **layers)).float()
    config: list[dict[str, Any]] = [{"quant_bits": 8}, {"quant_bits": 4, "op_names": ["b"]}]
    quantizer = QAT_Quantizer(model, config, example_inputs=image(3, 4).float())
    quantizer.compress()
    bits = {name: quantizer.quantizers_of(name)["input"].grid.bits for name in "ab"}
    assert bits == {"a": 8, "b": 4}


def test_a_module_called_twice_has_one_weight_and_two_inputs() -> None:
    model = ready(Function(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Linear(4, 4))).float()
    quantizer = QAT_Quantizer(model, [{"quant_bits": 8}], example_inputs=image(3, 4).float())
    module = quantizer.compress()
    assert sorted(quantizer.fake_quantizers) == ["a_input", "a_input_2", "a_weight", "a_weight_1"]
    assert isinstance(module, fxcompress.CompiledModule)


def test_a_layer_of_which_nothing_can_be_rounded_is_noted() -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))
    config = [{"quant_bits": 8, "quant_types": ["weight"], "op_types": ["LayerNorm", "Linear"]}]
    module = fxcompress.compile(model, config, torch.randn(3, 8))
    [note] = module.notes
    assert note.startswith("0: weight selected, but nothing is rounded")
