"""Cross-layer equalization: ranges that are shared out, by hand, and what they are worth in few bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress import ops
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.absorb_batch_norm import absorb_batch_norm
from fxcompress.quantization import PTQ_Quantizer
from fxcompress.quantization.equalize import equalize
from fxcompress.quantization.outcome import Outcome
from tests.helpers import EXACT, Function, image, ready, relative_error, run


def equalized(model: nn.Module, x: Tensor) -> tuple[CompiledModule, Outcome]:
    module = fxcompress.capture(model, x)
    absorb_batch_norm(module)
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name for name, child in model.named_modules() if isinstance(child, kinds)}
    nodes = [n for n in module.graph.nodes if str(n.target) in layers and n.op == "call_module"]
    nodes += module.graph.find_nodes(op="call_function", target=ops.call)
    return module, equalize(module, sorted(nodes, key=list(module.graph.nodes).index))


def test_both_ranges_become_their_geometric_mean() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[8.0, -2.0], [0.5, 0.25]]))
        a.bias.copy_(torch.tensor([4.0, 1.0]))
        b.weight.copy_(torch.tensor([[-2.0, 1.0], [1.0, 8.0]]))
    module, outcome = equalized(nn.Sequential(a, nn.ReLU(), b).eval(), torch.ones(3, 2))
    # s = √(8 · 2) / 2 = 2 and √(0.5 · 8) / 8 = 1/4
    assert module.get_parameter("0.weight").tolist() == [[4.0, -1.0], [2.0, 1.0]]
    assert module.get_parameter("0.bias").tolist() == [2.0, 4.0]
    assert module.get_parameter("2.weight").tolist() == [[-4.0, 0.25], [2.0, 2.0]]
    assert a.weight[0, 0] == 8.0
    assert outcome.done == ("0 → 2",)
    assert outcome.changed == ("0.weight", "0.bias", "2.weight")
    assert outcome.refused == (("2", "it is an output of the model"),)


def chain() -> nn.Module:
    layers = {
        "c1": nn.Conv2d(3, 6, 3, bias=False), "n1": nn.BatchNorm2d(6), "dw": nn.Conv2d(6, 6, 3, groups=6),
        "n2": nn.BatchNorm2d(6), "c2": nn.Conv2d(6, 4, 1), "c3": nn.Conv2d(4, 5, 3, padding=1),
    }  # fmt: skip

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.n2(m.dw(F.relu(m.n1(m.c1(x))))))
        out: Tensor = m.c3(F.relu6(m.c2(y)))
        return out

    return ready(Function(forward, **layers))


def test_a_chain_keeps_its_function_and_its_ranges_settle() -> None:
    model, x = chain(), image(2, 3, 8, 8)
    module, outcome = equalized(model, x)
    assert outcome.done == ("c1 → dw", "dw → c2")
    [(layer, reason), _] = outcome.refused
    assert (layer, "clips at an upper end" in reason) == ("c2", True)
    for more in (x, torch.cat([x, -x[:1]])):
        assert relative_error(run(module, (more,)), run(model, (more,))) <= EXACT
    first, middle, last = (module.get_parameter(f"{n}.weight").detach().abs() for n in ("c1", "dw", "c2"))
    made, both, read = first.amax((1, 2, 3)), middle.amax((1, 2, 3)), last.amax((0, 2, 3))
    torch.testing.assert_close(made, both, rtol=3e-3, atol=0.0)
    torch.testing.assert_close(both, read, rtol=3e-3, atol=0.0)


def test_a_channel_of_zeros_is_left_alone() -> None:
    a, b = nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        a.weight.copy_(torch.tensor([[0.0], [4.0]]))
        b.weight.copy_(torch.tensor([[3.0, 1.0]]))
    module, _ = equalized(nn.Sequential(a, b).eval(), torch.ones(3, 1))
    assert module.get_parameter("0.weight").tolist() == [[0.0], [2.0]]
    assert module.get_parameter("1.weight").tolist() == [[3.0, 2.0]]


def uneven() -> tuple[nn.Module, Tensor]:
    """Channels whose ranges differ by up to a thousand, which the next layer takes back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    factors = torch.logspace(-1.5, 1.5, 16)
    with torch.no_grad():
        first, second = model[0], model[2]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        assert first.bias is not None
        first.weight.mul_(factors.view(-1, 1, 1, 1))
        first.bias.mul_(factors)
        second.weight.div_(factors.view(1, -1, 1, 1))
    return model.eval(), torch.randn(4, 3, 10, 10)


@pytest.mark.parametrize("scheme", ["per_tensor_symmetric", "per_channel_symmetric"])
def test_uneven_channels_need_it(scheme: str) -> None:
    model, x = uneven()
    config = [{"quant_bits": 8, "quant_scheme": {"weight": scheme}}]
    errors = []
    for wanted in (False, True):
        quantizer = PTQ_Quantizer(model, config, example_inputs=x, data=[x], equalize=wanted)
        errors.append(relative_error(run(quantizer.compress().eval(), (x,)), run(model, (x,))))
    assert quantizer.outcomes["equalize"].done == ("0 → 2", "2 → 4")
    assert errors[1] < errors[0] / 4
