"""The masked model read off a pruned one: right where channels were taken, wrong where anything else was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.removed_channels import Float64, Masked, label, survivors
from benchmarks.subject import randomize, relative_error


def keep(layer: nn.Module, indices: list[int], dims: dict[str, int]) -> None:
    """Shrink parameters (name → dimension) of a layer, gradients with them, as a pruning tool does."""
    for name, dim in dims.items():
        old = getattr(layer, name)
        new = nn.Parameter(old.detach()[(slice(None),) * dim + (indices,)])
        new.grad = old.grad[(slice(None),) * dim + (indices,)]
        setattr(layer, name, new)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.sigmoid(self.norm(self.first(x))))
        return y


def test_removed_channels_of_a_convnet_are_the_zeros_of_the_masked_one() -> None:
    model, x = ConvNet().eval(), torch.randn(2, 3, 5, 5)
    randomize(model, 0, (x,))
    small = copy.deepcopy(model)
    label(small)
    kept = [0, 2, 5]
    keep(small.first, kept, {"weight": 0, "bias": 0})
    keep(small.norm, kept, {"weight": 0, "bias": 0})
    keep(small.second, kept, {"weight": 1})
    for name in ("running_mean", "running_var"):
        small.norm.register_buffer(name, model.norm.get_buffer(name)[kept])
    left = survivors(small)
    assert left["norm.bias"].tolist() == kept
    assert left["second.weight"].shape == (4, 3, 3, 3)
    assert int(left["second.weight"][1, 1, 0, 2]) == ((1 * 6 + 2) * 3 + 0) * 3 + 2
    assert all(parameter.grad is None for parameter in small.parameters())
    expected = Masked(model, left)((x.double(),), kept_statistics=False)
    got = small.double()(x.double())
    assert relative_error(expected, got) <= 1e-14
    with torch.no_grad():
        small.second.weight[0, [0, 1]] = small.second.weight[0, [1, 0]]  # channels that changed places
    assert relative_error(expected, small(x.double())) > 1e-3


class Normalized(nn.Module):
    """A linear layer, one of four norms over its outputs, a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm = {
            "layer": nn.LayerNorm(8),
            "group": nn.GroupNorm(2, 8),
            "written out": WrittenOut(),
            "response": Response(),
        }[kind]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.norm(self.first(x)))
        return y


class WrittenOut(nn.Module):
    """RMS norm as Hugging Face writes it, narrower float included."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32)
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Response(nn.Module):
    """ConvNeXt V2's response normalization, its weight one value a channel in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, 1, 8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=0, keepdim=True)
        y: Tensor = self.weight * (x * size / (size.mean(-1, keepdim=True) + 1e-6)) + x
        return y.squeeze(0)


@pytest.mark.parametrize("kind", ["layer", "group", "written out", "response"])
def test_norms_over_the_kept_channels_are_the_generous_reading(kind: str) -> None:
    model, x = Normalized(kind).eval(), torch.randn(5, 4)
    randomize(model, 1, (x,))
    small = copy.deepcopy(model)
    label(small)
    kept = [0, 3, 5, 6]  # two of each group
    keep(small.first, kept, {"weight": 0, "bias": 0})
    keep(small.second, kept, {"weight": 1})
    keep(small.norm, kept, {name: p.ndim - 1 for name, p in model.norm.named_parameters()})
    if isinstance(small.norm, nn.LayerNorm):
        small.norm.normalized_shape = (4,)
    elif isinstance(small.norm, nn.GroupNorm):
        small.norm.num_channels = 4
    masked = Masked(model, survivors(small))
    with Float64(), torch.no_grad():
        got = small.double()(x.double())
    assert relative_error(masked((x.double(),), kept_statistics=True), got) <= 1e-14
    assert relative_error(masked((x.double(),), kept_statistics=False), got) > 1e-3


def test_attention_of_narrower_heads_is_scaled_by_what_is_left_of_them() -> None:
    model, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(2, 3, 8)
    randomize(model, 2, (x, x, x))
    small = copy.deepcopy(model)
    label(small)
    kept = [0, 1, 2, 5, 6, 7]  # three of each head's four
    rows = [*kept, *(8 + k for k in kept), *(16 + k for k in kept)]
    keep(small, rows, {"in_proj_weight": 0, "in_proj_bias": 0})
    keep(small, kept, {"in_proj_weight": 1})
    keep(small.out_proj, kept, {"weight": 0, "bias": 0})
    keep(small.out_proj, kept, {"weight": 1})
    small.embed_dim, small.head_dim, small.kdim, small.vdim = 6, 3, 6, 6
    masked = Masked(model, survivors(small))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        wide, narrow = x.double(), x.double()[..., kept]
        with torch.no_grad():
            got = small.double()(narrow, narrow, narrow, need_weights=False)[0]

        def output(kept_statistics: bool) -> Tensor:
            y: Tensor = masked((wide, wide, wide, None, False), kept_statistics)[0][..., kept]
            return y

        assert relative_error(output(True), got) <= 1e-14
        assert relative_error(output(False), got) > 1e-3
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_tool_that_loses_the_labels_is_an_error() -> None:
    model = nn.Linear(2, 2)
    label(model)
    model.weight = nn.Parameter(model.weight.detach()[:1])
    with pytest.raises(ValueError, match="weight: the labels are lost"):
        survivors(model)


def test_float32_by_name_is_float64() -> None:
    x = torch.tensor([1 / 3], dtype=torch.float64)
    with Float64():
        results = [x.float(), x.to(torch.float32), torch.softmax(x, 0, dtype=torch.float32)]
    assert {result.dtype for result in results} == {torch.float64}
    assert results[0].item() == 1 / 3
