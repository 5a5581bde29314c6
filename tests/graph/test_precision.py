"""Float64: what runs wide, what is held meanwhile, and that complex numbers widen too."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress
from fxcompress.graph.module import eval_mode
from fxcompress.graph.precision import Float64, float64_copy, relative_difference, to_float64
from tests.comparing import map_floats
from tests.generator import random_case


class Spectral(nn.Module):
    """The lowest frequencies of the channels are mixed by a complex weight (Li et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(3, 8, 1)
        self.weight = nn.Parameter(torch.randn(8, 8, 4, dtype=torch.cfloat))
        self.head = nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(self.lift(x))
        made = torch.zeros_like(spectrum)
        made[:, :, :4] = torch.einsum("bix,iox->box", spectrum[:, :, :4], self.weight.to(spectrum.dtype))
        result: Tensor = self.head(torch.fft.irfft(made, n=x.shape[-1]))
        return result


def test_complex_parameters_are_widened() -> None:
    model = Spectral().eval()
    x = torch.randn(2, 3, 16)
    wide = float64_copy(fxcompress.capture(model, x))
    assert {p.dtype for p in wide.parameters()} == {torch.float64, torch.complex128}
    assert relative_difference(wide(x.double()), model.double()(x.double())) < 1e-6


def test_a_spectral_convolution_is_pruned_and_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16)
    small = fxcompress.speedup(fxcompress.compile(Spectral(), [{"op_names": ["lift"], "sparsity": 0.5}], x))
    assert small.get_parameter("weight").shape[0] == 4
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_complex_results_are_compared_as_numbers() -> None:
    given = torch.randn(4, dtype=torch.cdouble)
    assert relative_difference(given * (1 + 1e-12), given) < 1e-11
    assert relative_difference(given + 1.0, given) > 0.1


@pytest.mark.parametrize("seed", range(12))
def test_what_runs_wide_is_what_a_wide_copy_computes(seed: int) -> None:
    network, _ = random_case(seed)
    model = network.model().float()
    inputs = map_floats(Tensor.float, network.inputs(batch=2))
    module = fxcompress.capture(model, inputs)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flat = pytree.tree_leaves(module.example_inputs)
    with eval_mode(module), torch.no_grad():
        got = Float64(module).run(*flat, enable_io_processing=False)
        args, kwargs = to_float64(module.example_inputs)
        expected = float64_copy(module)(*args, **kwargs)
    assert relative_difference(pytree.tree_leaves(got), pytree.tree_leaves(expected)) < 1e-14
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_one_layer_is_wide_at_a_time() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(12))).eval()
    module = fxcompress.capture(model, torch.randn(2, 8))
    alive: list[int] = []
    for name, layer in module.named_children():
        assert isinstance(layer, nn.Linear), name
        layer.register_forward_hook(lambda *_: alive.append(_wide_parameters()))
    gc.collect()
    others = _wide_parameters()
    with torch.no_grad():
        Float64(module).run(torch.randn(2, 8))
    assert alive == [others + 2] * 12


def _wide_parameters() -> int:
    return sum(isinstance(o, nn.Parameter) and o.dtype == torch.float64 for o in gc.get_objects())
