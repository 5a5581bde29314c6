"""Quantized models in training loops: several processes, mixed precision, accumulating, compiled, resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import cross_entropy

from fxcompress.graph.module import CompiledModule
from fxcompress.quantization import QUANTIZERS, QAT_Quantizer, Quantizer
from tests.helpers import image, ready
from tests.processes import all_quantized, together

X = image(8, 3, 6, 6).float()
LABELS = torch.arange(8) % 3
TRAINED = ("qat", "lsq", "lsq+")


def net(seed: int = 1) -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten())
    return ready(nn.Sequential(*layers, nn.Linear(24, 3)), seed).float()


def quantizer_of(name: str, model: nn.Module, **keys: Any) -> Quantizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return QUANTIZERS[name](model, [{"quant_bits": 6, **keys}], optimizer, example_inputs=X)


def step(quantizer: Quantizer, run: Callable[[Tensor], Tensor], x: Tensor, parts: int = 1) -> None:
    """One optimizer step on ``parts`` parts of a batch."""
    assert quantizer.optimizer is not None
    quantizer.optimizer.zero_grad()
    for inputs, labels in zip(x.chunk(parts), LABELS.chunk(parts), strict=True):
        (cross_entropy(run(inputs).float(), labels) / parts).backward()
    quantizer.optimizer.step()


def same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


# -- several processes -----------------------------------------------------------------------------------
def test_two_processes_train_what_one_does_on_the_whole_batch(tmp_path: Path) -> None:
    alone, (first, second) = together(tmp_path, all_quantized)
    for name, expected in alone.items():
        for key, value in expected.items():
            assert torch.equal(first[name][key], second[name][key]), f"{name}: {key}"
            if name != "lsq+":  # it begins at the mean of what each process finds best
                torch.testing.assert_close(
                    first[name][key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}"
                )


# -- mixed precision -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TRAINED, "dorefa", "bnn"])
def test_autocast_computes_in_bfloat16_and_ranges_stay_float32(name: str) -> None:
    model = net()
    quantizer = quantizer_of(name, model)
    module = quantizer.compress()
    before = {key: p.detach().clone() for key, p in module.named_parameters()}

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = module.train()(x)
        assert y.dtype is torch.bfloat16
        return y

    for _ in range(2):
        step(quantizer, run, X)
    for p in module.parameters():
        assert p.dtype is torch.float32
        assert bool(p.isfinite().all())
        assert p.grad is not None
    assert any(not torch.equal(p, before[key]) for key, p in module.named_parameters())
    for found in quantizer.fake_quantizers.values():
        assert found.scale.dtype is torch.float32
        assert bool((found.deployed()[0] > 0).all())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module.eval()(X).float()
    if name not in ("dorefa", "bnn"):  # 6 bits; bfloat16 has 8
        exact = module(X)
        assert float((mixed - exact).norm() / exact.norm()) < 0.1


# -- accumulating ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TRAINED)
def test_rounding_begins_after_steps_of_the_optimizer_not_after_forward_passes(name: str) -> None:
    quantizer = quantizer_of(name, net(), quant_start_step=2)
    module = quantizer.compress()
    rounds = []
    for _ in range(4):
        found = list(quantizer.fake_quantizers.values())
        rounds.append({q.quantizing for q in found})
        step(quantizer, module.train(), X, parts=4)
    assert rounds == [{False}, {False}, {True}, {True}]
    assert quantizer.steps == 4


def test_every_forward_pass_of_an_accumulated_step_moves_the_range() -> None:
    quantizer = quantizer_of("qat", net())
    module = quantizer.compress()
    step(quantizer, module.train(), X, parts=2)
    low, high = (half.amin() for half in X.chunk(2)), (half.amax() for half in X.chunk(2))
    expected = torch.stack([(a * 0.99 + b * 0.01) for a, b in (tuple(low), tuple(high))])
    found = torch.stack(quantizer.quantizers_of("0")["input"].range())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["qat", "lsq"])
def test_two_half_batches_have_the_gradient_of_the_batch(name: str) -> None:
    grads = []
    for parts in (1, 2):
        model = net()
        quantizer = quantizer_of(name, model)
        module = quantizer.compress()
        module.train()(X)  # a range to begin with
        for found in quantizer.fake_quantizers.values():
            found.observing = False
        step(quantizer, module, X, parts)
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# -- torch.compile ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TRAINED)
def test_compiled_it_trains_to_the_same_weights_and_ranges(name: str) -> None:
    found: list[CompiledModule] = []
    for backend in (None, "aot_eager"):
        torch.compiler.reset()
        model = nn.Sequential(nn.Flatten(), ready(nn.Linear(108, 3)).float())
        quantizer = quantizer_of(name, model, quant_start_step=1)
        module = quantizer.compress()
        run = module if backend is None else torch.compile(module, backend=backend)
        module.train()
        for _ in range(3):
            step(quantizer, run, X)
        found.append(module)
    for (key, value), expected in zip(
        found[1].state_dict().items(), found[0].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("training", [True, False])
def test_compiled_it_is_one_graph(name: str, training: bool) -> None:
    torch.compiler.reset()
    quantizer = quantizer_of(name, net())
    module = quantizer.compress()
    step(quantizer, module.train(), X)
    step(quantizer, module, X)
    module.train(training)
    expected = copy.deepcopy(module)(X)
    counter = CompileCounter()
    assert torch.equal(torch.compile(module, backend=counter, fullgraph=True)(X), expected)
    assert counter.frame_count == 1


# -- saving and going on ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*TRAINED, "dorefa", "bnn"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    whole = quantizer_of(name, net(), quant_start_step=3)
    module = whole.compress().train()
    for index in range(2):
        step(whole, module, X * (1 + index))
    assert whole.optimizer is not None
    state = {
        "model": module.state_dict(),
        "quantizer": whole.state_dict(),
        "optimizer": whole.optimizer.state_dict(),
    }
    torch.save(state, tmp_path / "checkpoint.pt")
    for index in range(3):
        step(whole, module, X.flip(0) * (2 - index / 2))

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed = quantizer_of(name, net(2), quant_start_step=3)
    again = resumed.compress().train()
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["quantizer"])
    assert resumed.optimizer is not None
    resumed.optimizer.load_state_dict(state["optimizer"])
    for index in range(3):
        step(resumed, again, X.flip(0) * (2 - index / 2))
    same(again, module)
    assert resumed.steps == whole.steps == 5
    assert torch.equal(again.eval()(X), module.eval()(X))


def test_a_checkpoint_from_after_the_start_step_rounds_at_once(tmp_path: Path) -> None:
    quantizer = quantizer_of("qat", net(), quant_start_step=1)
    module = quantizer.compress()
    step(quantizer, module.train(), X)
    resumed = quantizer_of("qat", net(2), quant_start_step=1)
    again = resumed.compress()
    assert isinstance(resumed, QAT_Quantizer)
    resumed.load_state_dict(quantizer.state_dict())
    again.load_state_dict(module.state_dict())
    assert all(q.quantizing for q in resumed.fake_quantizers.values())
    assert torch.equal(again.eval()(X), module.eval()(X))
