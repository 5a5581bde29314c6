"""Observers: ranges of small tensors by hand, and what the searches find on known distributions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxcompress.errors import FxcompressError
from fxcompress.numerics.fake_quantize import FakeQuantize
from fxcompress.numerics.grid import Grid
from fxcompress.numerics.observers import OBSERVERS, Observer

U8 = Grid(8, signed=False, symmetric=False)
BATCHES = [torch.tensor([[-1.0, 2.0], [0.0, 4.0]]), torch.tensor([[-3.0, 1.0], [0.5, 2.0]])]


def observed(name: str, batches: list[Tensor], grid: Grid = U8) -> tuple[Tensor, Tensor]:
    observer: Observer = OBSERVERS[name]()
    state = {key: torch.empty(0) for key in observer.state}
    for batch in batches:
        state = observer.update(state, batch, grid)
    return observer.range(state, grid)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("last", -3.0, 2.0), ("minmax", -3.0, 4.0), ("moving_average", -1.02, 3.98)],
)
def test_ranges_after_two_batches(name: str, low: float, high: float) -> None:
    got = observed(name, BATCHES)
    torch.testing.assert_close(torch.stack(got), torch.tensor([low, high]), rtol=1e-6, atol=0)


def test_every_slice_has_a_range_of_its_own() -> None:
    low, high = observed("minmax", BATCHES, Grid(8, True, True, axis=1))
    assert (low.tolist(), high.tolist()) == ([-3.0, 1.0], [0.5, 4.0])


@pytest.mark.parametrize("name", sorted(set(OBSERVERS) - {"fixed"}))
def test_infinities_are_no_range(name: str) -> None:
    masked = torch.cat([torch.linspace(-1, 1, 99), torch.tensor([-torch.inf])])
    low, high = observed(name, [masked])
    assert -1.001 <= float(low) < -0.9
    assert 0.9 < float(high) <= 1.001


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_before_anything_was_seen_there_is_no_range(name: str) -> None:
    observer = OBSERVERS[name]()
    with pytest.raises(FxcompressError, match="nothing was observed"):
        observer.range({key: torch.empty(0) for key in observer.state}, U8)


@pytest.mark.parametrize("name", ["percentile", "mse", "entropy"])
def test_searches_clip_an_outlier(name: str) -> None:
    """Of 100,000 normal numbers and one of 60, four bits are better spent on the normal ones."""
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    low, high = observed(name, [x, torch.tensor([60.0])], Grid(4, signed=True, symmetric=True))
    assert 2.0 < float(high) < 8.0
    assert -8.0 < float(low) < -2.0


def test_the_percentile_of_a_uniform_distribution() -> None:
    x = torch.linspace(-1, 1, 100_001)
    low, high = observed("percentile", [x])
    assert float(low) == pytest.approx(-0.9999, abs=2e-3)
    assert float(high) == pytest.approx(0.9999, abs=2e-3)


def test_mse_is_the_best_of_its_candidates() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    grid = Grid(3, signed=True, symmetric=True)

    def error(low: Tensor, high: Tensor) -> float:
        return float((grid.fake_quantize(x, *grid.parameters(low, high)) - x).square().mean())

    found = error(*observed("mse", [x], grid))
    lowest = min(error(x.min() * s, x.max() * s) for s in torch.linspace(0.05, 1.0, 96))
    assert found <= lowest * 1.02


def test_histograms_widen_without_losing_counts() -> None:
    observer = OBSERVERS["mse"]()
    state = {key: torch.empty(0) for key in observer.state}
    for scale in (0.1, 1.0, 7.0, 100.0):
        state = observer.update(state, torch.linspace(-scale, scale, 1000), U8)
    assert float(state["counts"].sum()) == 4000
    assert float(state["bound"]) >= 100.0


def test_ranges_move_in_train_mode_and_while_calibrating_only() -> None:
    quantizer = FakeQuantize(U8, OBSERVERS["moving_average"]())
    x = torch.tensor([0.0, 1.0])
    assert torch.equal(quantizer.eval()(x * 0.3), x * 0.3), "nothing is rounded before anything was seen"
    quantizer.train()(x)
    assert quantizer.scale.item() == pytest.approx(1 / 255)
    quantizer.eval()(x * 9)
    assert quantizer.scale.item() == pytest.approx(1 / 255)
    quantizer.calibrating = True
    quantizer(x * 11)
    assert quantizer.high.item() == pytest.approx(0.99 + 0.11)  # type: ignore[operator]


def test_a_checkpoint_holds_everything_seen() -> None:
    first, second = (FakeQuantize(Grid(8, True, True, axis=0), OBSERVERS["minmax"]()) for _ in range(2))
    weight = torch.randn(5, 3)
    first.train()(weight)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.eval()(weight), first.eval()(weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_come_back_as_they_were(dtype: torch.dtype) -> None:
    quantizer = FakeQuantize(U8)
    x = torch.tensor([-1.0, 0.3, 5.0], dtype=dtype, requires_grad=True)
    y = quantizer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), x.double(), rtol=1e-2, atol=0.02)
    y.sum().backward()
    assert x.grad is not None
