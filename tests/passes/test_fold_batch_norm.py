"""fold_batch_norm: ``y = bn(conv(x))`` becomes ``y = conv'(x)``, in eval mode the same function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress.passes.fold_batch_norm import fold_batch_norm
from tests.helpers import EXACT, Function, compiled, image, ready, relative_error, run, targets

CASES = [
    (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (3, 4, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, eps=1e-2), (3, 4, 5, 5)),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5)),
    (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), (2, 4, 3, 3, 3)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), CASES)
def test_the_norm_disappears_into_the_layer(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = ready(nn.Sequential(layer, norm, nn.ReLU()))
    x = image(*shape)
    module = fxcompress.capture(model, x)
    assert targets(module) == ["0", "1", "2"]
    result = fold_batch_norm(module)
    assert (result.done, result.refused) == (("1",), ())
    assert targets(module) == ["0", "2"]
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT
    assert module.get_submodule("0").get_parameter("weight") is not model.get_submodule("0").get_parameter(
        "weight"
    )


C, N = nn.Conv2d, nn.BatchNorm2d


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Function(lambda m, x: m.n(torch.relu(m.c(x))), c=C(3, 4, 1), n=N(4)), "no convolution"),
        (Function(lambda m, x: m.n(x), n=N(3)), "no convolution"),
        (Function(lambda m, x: (lambda y: m.n(y) + y)(m.c(x)), c=C(3, 4, 1), n=N(4)), "also read by others"),
        (Function(lambda m, x: m.n(m.c(x)) + m.c(x * 2), c=C(3, 4, 1), n=N(4)), "called more than once"),
        (nn.Sequential(C(3, 4, 1), N(4, track_running_stats=False)), "no running statistics"),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_stays_with_the_reason(model: nn.Module, reason: str) -> None:
    model, x = ready(model), image(3, 3, 4, 4)
    module = fxcompress.capture(model, x)
    result = fold_batch_norm(module)
    assert result.done == ()
    assert len(result.refused) == 1
    assert reason in result.refused[0][1]
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_a_norm_over_positions_of_a_linear_layer_stays() -> None:
    model, x = ready(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5))), image(3, 5, 4)
    module = fxcompress.capture(model, x)
    assert "channels are not those of 0" in fold_batch_norm(module).refused[0][1]
    assert relative_error(run(module, (x,)), run(model, (x,))) <= EXACT


def test_a_masked_layer_stays_and_folds_once_it_is_small() -> None:
    x = image(3, 3, 6, 6)
    module = compiled(nn.Sequential(C(3, 8, 3), N(8), nn.ReLU(), C(8, 2, 1)), x, op_names=["0"])
    assert "masked" in fold_batch_norm(module.fork()).refused[0][1]
    small = fxcompress.speedup(module)
    assert fold_batch_norm(small).done == ("1",)
    assert relative_error(run(small, (x,)), run(module, (x,))) <= EXACT
