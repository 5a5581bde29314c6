"""What the benchmarks do to a model before and after: randomization, output layers, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.subject import (
    as_double,
    config_for,
    load_zoo,
    one_more,
    output_layers,
    randomize,
    relative_error,
    sensitivity,
)
from fxcompress.graph.capture import capture


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.boxes = nn.Conv2d(4, 2, 1)
        self.neck = nn.Linear(4, 6)
        self.labels = nn.Linear(6, 5)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x))) * self.scale
        boxes = nn.functional.interpolate(torch.sigmoid(self.boxes(x)), scale_factor=2.0)
        return {"boxes": boxes, "labels": self.labels(self.neck(x.mean((2, 3)))).softmax(-1)}


def test_output_layers_are_those_with_nothing_parametrised_after_them() -> None:
    captured = capture(TwoHeads().eval(), torch.randn(2, 3, 8, 8))
    assert set(output_layers(captured)) == {"boxes", "labels"}
    config = config_for(captured, 0.5)
    assert config[0] == {"sparsity": 0.5}
    assert set(config[1].pop("op_names")) == {"boxes", "labels"}
    assert config[1] == {"exclude": True}


def test_randomize_leaves_nothing_at_its_default_and_is_seeded() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second, other = TwoHeads(), TwoHeads(), TwoHeads()
    second.load_state_dict(first.state_dict())
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        randomize(model.eval(), seed, (images,))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.norm.weight, other.norm.weight)
    for tensor in (first.norm.weight, first.norm.bias, first.norm.running_mean, first.norm.running_var):
        assert isinstance(tensor, Tensor)
        assert bool(((tensor != 0) & (tensor != 1)).all())
    assert isinstance(other.norm.running_var, Tensor)
    assert not torch.equal(other.norm.running_var, second.norm.running_var)  # type: ignore[arg-type]
    assert bool((first.scale.abs() >= 0.5).all())


def test_inputs_change_precision_and_batch() -> None:
    tokens, image = torch.arange(6).view(2, 3), torch.randn(2, 3, 4)
    cast = as_double((image, tokens))
    assert [tensor.dtype for tensor in cast] == [torch.float64, torch.int64]
    more = one_more((image, tokens))
    assert [tuple(tensor.shape) for tensor in more] == [(3, 3, 4), (3, 3)]
    assert more[1][2].tolist() == [2, 1, 0]


def test_relative_error_is_the_worst_over_outputs() -> None:
    old = {"a": torch.tensor([1.0, 100.0]), "b": torch.tensor([2])}
    assert relative_error(old, {"a": torch.tensor([3.0, 100.0]), "b": torch.tensor([2])}) == pytest.approx(
        0.02, abs=1e-9
    )
    for wrong in (
        {"a": torch.ones(3), "b": torch.tensor([2])},
        {"a": old["a"], "b": torch.tensor([3])},
        {"a": torch.tensor([float("nan"), 1.0]), "b": torch.tensor([2])},
        {"a": old["a"]},
    ):
        assert relative_error(old, wrong) == float("inf")


def test_a_deep_network_still_depends_on_its_input_after_randomizing() -> None:
    blocks = [
        layer for _ in range(30) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    ]
    model = nn.Sequential(*blocks).eval()
    images = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),)
    torch.manual_seed(0)
    randomize(model, 0, images)
    with torch.no_grad():
        assert sensitivity(model(*one_more(images))) > 0.01
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_sensitivity_compares_the_first_and_the_last_example() -> None:
    assert sensitivity([torch.tensor([[4.0, 1.0], [0.0, 0.0], [4.0, 2.0]])]) == 0.25
    assert sensitivity(torch.ones(3, 2)) == 0.0


def test_a_folder_without_a_zoo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no zoo\.py"):
        load_zoo(tmp_path)
