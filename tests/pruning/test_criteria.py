"""Every criterion: its formula against numbers worked out by hand, and its way through a training run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.pruning import (
    PRUNERS,
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    FPGMPruner,
    L1FilterPruner,
    L2FilterPruner,
    LAMPPruner,
    Layer,
    MeasuringPruner,
    OBDPruner,
    RandomPruner,
    ScoringPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
    get_masks,
)
from tests.helpers import check_exact, image, ready

MEASURED = tuple(name for name, cls in PRUNERS.items() if issubclass(cls, MeasuringPruner))


def two_layers(
    rows: list[list[float]], bias: list[float], *between: nn.Module, last: list[float]
) -> nn.Sequential:
    """Layer 0 with the given weight and bias, ``between``, and a linear layer to one output."""
    model = nn.Sequential(nn.Linear(len(rows[0]), len(rows)), *between, nn.Linear(len(rows), 1)).double()
    for layer, weight in ((model[0], rows), (model[-1], [last])):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    model[0].bias.data = torch.tensor(bias, dtype=torch.float64)
    return model


def ranked(
    cls: type[ScoringPruner], model: nn.Module, x: Tensor, **options: Any
) -> tuple[ScoringPruner, Layer]:
    """The pruner, on the unmasked model, and layer 0 of it; what it measures has been measured."""
    pruner = cls(model, [{"sparsity": 0.5, "op_names": ["0"]}], example_inputs=x, **options)
    pruner.bound_model = fxcompress.capture(model, x)
    pruner.settings = dict(pruner.selection.pruning)
    _, layers = pruner._analyzed()
    if isinstance(pruner, MeasuringPruner):
        pruner.measure(layers, options["data"])
    return pruner, layers[0]


def scores(cls: type[ScoringPruner], model: nn.Module, x: Tensor, **options: Any) -> list[float]:
    pruner, layer = ranked(cls, model, x, **options)
    return pruner.score(layer).tolist()


ROWS = [[1.0, -2.0], [3.0, 0.0], [-2.0, 2.0], [0.0, 4.0]]
X2 = torch.tensor([[1.0, 2.0], [2.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("cls", "rows", "expected"),
    [
        (L1FilterPruner, ROWS, [3, 3, 4, 4]),
        (L2FilterPruner, ROWS, [math.sqrt(5), 3, math.sqrt(8), 4]),
        (FPGMPruner, [[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], [15, 10, 15]),
        # squares 5, 9, 8, 16: over 38, 25, 33 and 16 of at least as large ones, themselves included
        (LAMPPruner, ROWS, [5 / 38, 9 / 25, 8 / 33, 1.0]),
    ],
)
def test_scores_of_weights(cls: type[ScoringPruner], rows: list[list[float]], expected: list[float]) -> None:
    model = two_layers(rows, [0.5] * len(rows), nn.ReLU(), last=[1.0] * len(rows))
    assert scores(cls, model, X2) == pytest.approx(expected, rel=1e-6)


def test_lamp_of_single_weights_is_their_share_of_what_outlives_them() -> None:
    model = two_layers([[1.0, 2.0], [-3.0, 0.0]], [0.5, 0.5], nn.ReLU(), last=[1.0, 1.0])
    pruner, layer = ranked(LAMPPruner, model, X2)
    assert pruner.importance(layer).flatten().tolist() == pytest.approx([1 / 14, 4 / 13, 1.0, 0.0])


def summed(output: Tensor, batch: Any) -> Tensor:
    return output.sum()


def test_taylor_is_the_squared_product_of_weight_and_gradient() -> None:
    """y = 5 h0 - h1 of x = (1, 2): g = [[5, 10], [-1, -2]]; of x = (2, 0): g = [[10, 0], [-2, 0]]."""
    model = two_layers([[1.0, 2.0], [3.0, -4.0]], [0.5, -0.5], nn.Identity(), last=[5.0, -1.0])
    data = [X2[:1], X2[1:]]
    got = scores(TaylorFOWeightFilterPruner, model, X2, data=data, loss_fn=summed)
    assert got == pytest.approx([(25 + 400 + 100) / 2, (9 + 64 + 36) / 2])
    assert all(p.grad is None for p in model.parameters())


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_obd_is_half_the_curvature_times_the_squared_weight() -> None:
    """y = 5 h0² - h1², x one-hot: the Hessian is diagonal, 2 · 5 · x_j² and -2 · x_j²."""
    model = two_layers([[1.0, 2.0], [3.0, -4.0]], [0.5, -0.5], Squared(), last=[5.0, -1.0])
    data = [torch.tensor([[3.0, 0.0]]).double(), torch.tensor([[0.0, 2.0]]).double()]
    curvature = [[10 * 9 / 2, 10 * 4 / 2], [-2 * 9 / 2, -2 * 4 / 2]]
    weights = [[1.0, 2.0], [3.0, -4.0]]
    expected = [
        sum(0.5 * h * w * w for h, w in zip(row, own, strict=True))
        for row, own in zip(curvature, weights, strict=True)
    ]
    assert scores(OBDPruner, model, X2, data=data, loss_fn=summed) == pytest.approx(expected)


def test_obd_needs_data_of_its_own() -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"pruner 'obd' takes second derivatives .* choose pruner 'taylor'"):
        OBDPruner(model, [{"sparsity": 0.5, "op_names": ["0"]}], optimizer, example_inputs=X2).compress()


ACTIVATED = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (ActivationAPoZRankFilterPruner, [2 / 4, 3 / 4]),
        (ActivationMeanRankFilterPruner, [(1.5 + 0.5) / 4, (0.5 + 0.5 + 2.5) / 4]),
    ],
)
def test_activation_scores(cls: type[ScoringPruner], expected: list[float]) -> None:
    """h = x + (0.5, -0.5), behind which the ReLU sees (1.5, .5), (-.5, .5), (-1.5, -.5), (.5, 2.5)."""
    model = two_layers([[1.0, 0.0], [0.0, 1.0]], [0.5, -0.5], nn.ReLU(), last=[1.0, 1.0])
    data = [(ACTIVATED[:2], "label"), (ACTIVATED[2:], "label")]
    assert scores(cls, model, ACTIVATED, data=data) == pytest.approx(expected)


def test_wanda_ranks_within_every_output() -> None:
    """Norms of the inputs 5, 2, 1: scores 5, 6, 2 and 2.5, 2, 4."""
    model = two_layers([[1.0, -3.0, 2.0], [0.5, 1.0, -4.0]], [0.5, 0.5], nn.ReLU(), last=[1.0, 1.0])
    data = [torch.tensor([[3.0, 0.0, 1.0]]).double(), torch.tensor([[4.0, 2.0, 0.0]]).double()]
    entry = {"sparsity": 0.34, "pruner": "wanda", "op_names": ["0"]}
    module = fxcompress.compile(model, [entry], data[0], data=data)
    assert get_masks(module)["0"]["weight"].tolist() == [[1, 1, 0], [1, 0, 1]]


def normed() -> Any:
    model: Any = ready(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    model[1].weight.data = torch.tensor([-0.5, 2.0, 0.1], dtype=torch.float64)
    return model


def test_slim_ranks_by_the_scale_and_regularizes_it() -> None:
    model = normed()
    assert scores(SlimPruner, model, image(2, 3, 5, 5)) == pytest.approx([0.5, 2.0, 0.1])
    pruner = SlimPruner(
        model, [{"sparsity": 0.4, "op_names": ["0"]}], example_inputs=image(2, 3, 5, 5), scale=0.5
    )
    module = pruner.compress()
    assert get_masks(module)["0"]["bias"].tolist() == [1, 1, 0]
    loss = pruner.regularizer()
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * 2.6)
    assert model[1].weight.grad.tolist() == pytest.approx([-0.5, 0.5, 0.5])
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.01, 2.0, 0.1]))
    pruner.update_mask()
    assert get_masks(module)["0"]["bias"].tolist() == [0, 1, 1]


def test_slim_needs_a_norm() -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    with pytest.raises(ConfigError, match=r"0: pruner 'slim' ranks by the scale of the BatchNorm.*'l1'"):
        fxcompress.compile(model, [{"sparsity": 0.5, "pruner": "slim", "op_names": ["0"]}], X2)


def test_random_follows_the_seed() -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(scores(RandomPruner, model, X2))
    assert drawn[0] == drawn[1] != drawn[2]


WEIGHT = [[4.0, 1.0, 3.0, 2.0], [1.0, 9.0, 1.0, 8.0], [5.0, 5.0, 0.5, 0.5], [5.0, 5.0, 7.0, 7.0]]


@pytest.mark.parametrize(
    ("granularity", "sparsity", "expected"),
    [
        ("element", 0.25, [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]),
        ("row", 0.5, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]),
        ("2:4", 0.5, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]),
        ("in_channel", 0.5, [[0, 1, 0, 1]] * 4),  # sums 15, 20, 11.5, 17.5
        ([2, 2], 0.5, [[0] * 4, [0] * 4, [1] * 4, [1] * 4]),  # sums 15, 14, 20, 15: the tie goes to the first
        ([2, 3], 0.5, [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 0]]),  # means 19/6, 5, 28/6, 3.75
    ],
)
def test_granularities(granularity: Any, sparsity: float, expected: list[list[int]]) -> None:
    model = two_layers(WEIGHT, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    entry = {"sparsity": sparsity, "granularity": granularity, "op_names": ["0"]}
    masks = get_masks(fxcompress.compile(model, [entry], torch.ones(2, 4).double()))["0"]
    assert masks["weight"].tolist() == expected
    assert "bias" not in masks


def test_two_of_four_needs_a_multiple_of_four() -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    with pytest.raises(ConfigError, match=r"granularity '2:4': '0' has 2 input channels.*exclude it"):
        fxcompress.compile(model, [{"sparsity": 0.5, "granularity": "2:4", "op_names": ["0"]}], X2)


def test_what_ranks_filters_refuses_smaller_pieces() -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    entry = {"sparsity": 0.5, "granularity": "element", "pruner": "fpgm", "op_names": ["0"]}
    with pytest.raises(ConfigError, match=r"0: granularity 'element': pruner 'fpgm' ranks whole"):
        fxcompress.compile(model, [entry], X2)


@pytest.mark.parametrize("name", MEASURED)
def test_what_measures_says_what_it_needs(name: str) -> None:
    model = two_layers(ROWS, [0.5] * 4, nn.ReLU(), last=[1.0] * 4)
    with pytest.raises(
        ConfigError, match=rf"pruner '{name}' measures the model on batches: expected data=\.\.\."
    ):
        fxcompress.compile(model, [{"sparsity": 0.5, "pruner": name, "op_names": ["0"]}], X2)


def convnet() -> tuple[nn.Module, Tensor, list[str]]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.na = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.b, self.nb = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.na(self.a(x)))
            x = F.relu(x + self.nb(self.b(x)))
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    return ready(Net()), image(4, 3, 6, 6), ["a", "b"]


def transformer() -> tuple[nn.Module, Tensor, list[str]]:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
            self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + self.down(F.gelu(self.up(x)))
            return self.head(x.mean(1))  # type: ignore[no-any-return]

    return ready(Block()), image(4, 5, 8), ["qkv", "up"]


@pytest.mark.parametrize("make", [convnet, transformer])
@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_compile_train_and_speedup_stay_exact(name: str, make: Any) -> None:
    model, x, layers = make()
    if name == "slim" and make is transformer:
        pytest.skip("slim ranks by BatchNorm, of which a transformer has none")
    if name == "wanda" and make is convnet:
        layers = ["head"]
    data = [(x, torch.tensor([0, 1, 2, 0])), (x.flip(0) * 0.7, torch.tensor([1, 1, 0, 2]))]

    def loss_fn(output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch[1])

    entry = {"sparsity": 0.5, "pruner": name, "op_names": layers}
    module = fxcompress.compile(model, [entry], x, data=data, loss_fn=loss_fn)
    masks = get_masks(module)
    for layer in layers:
        assert float(masks[layer]["weight"].mean()) == 0.5
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    module.train()
    for batch in data * 2:
        optimizer.zero_grad()
        loss_fn(module(batch[0]), batch).backward()
        optimizer.step()
    small = fxcompress.speedup(module.eval(), x)
    check_exact(small, module, x)
    if PRUNERS[name].granularity == "out_channel":  # type: ignore[attr-defined]
        assert small.get_submodule(layers[-1]).get_parameter("weight").shape[0] < len(
            masks[layers[-1]]["weight"]
        )
