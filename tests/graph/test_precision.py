"""Copies in float64: complex numbers widen too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxcompress
from fxcompress.graph.precision import float64_copy, relative_difference


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
    assert dict(small.named_parameters())["weight"].shape[0] == 4
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_complex_results_are_compared_as_numbers() -> None:
    given = torch.randn(4, dtype=torch.cdouble)
    assert relative_difference(given * (1 + 1e-12), given) < 1e-11
    assert relative_difference(given + 1.0, given) > 0.1
