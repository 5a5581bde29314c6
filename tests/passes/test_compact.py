"""compact: a layer loses channels that others need; gathered in front of it, scattered behind it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxcompress
from benchmarks.results_file import RESULTS
from fxcompress.graph.module import CompiledModule
from fxcompress.passes import compact as compaction
from fxcompress.passes.compact import COSTS, Costs
from tests import laws
from tests.comparing import relative_error, run
from tests.generator import Network, Pruning, cases
from tests.helpers import (
    EXACT,
    Function,
    Masks,
    apply_masks,
    check_exact,
    image,
    make_masks,
    ready,
    shrunk,
    targets,
    weight_shape,
)

Plan = dict[str, dict[str, Any]]
FREE = Costs(per_element=0.0, per_call=0.0, share=0.0)


@pytest.fixture
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compact wherever a multiply-accumulate is saved: toys are too small to be worth it."""
    monkeypatch.setattr(compaction, "COSTS", FREE)


class Block(nn.Module):
    """A ResNet basic block."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, stride, 1)
        self.an = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, width, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.b(torch.relu(self.an(self.a(x)))))
        return torch.relu(y + self.down(x))


def resnet(width: int = 12) -> nn.Module:
    stem = (nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(
        *stem, Block(width), Block(width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)
    )


def per_layer(model: nn.Module, x: Tensor, sparsity: float = 0.5) -> CompiledModule:
    entry = {"sparsity": sparsity, "op_types": ["Conv2d"]}
    return fxcompress.compile(ready(model), [entry], x, dependency_aware=False).eval()


def inserted(module: fx.GraphModule) -> list[str]:
    return [name for name in targets(module) if name.endswith("_channels")]  # type: ignore[arg-type]


# name: (body, layers, input shape, masks, shapes of weights left)
Case = tuple[
    Callable[[Any, Tensor], Any], dict[str, nn.Module], tuple[int, ...], Plan, dict[str, tuple[int, ...]]
]
CASES: dict[str, Case] = {
    "one side of an addition": (
        lambda m, x: m.c(torch.relu(m.a(x) + m.b(x))),
        {"a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(3, 8, 1), "c": nn.Conv2d(8, 2, 3)},
        (2, 3, 6, 5),
        {"a": {"rows": [1, 4, 5]}},
        {"a": (5, 3, 3, 3), "b": (8, 3, 1, 1), "c": (2, 8, 3, 3)},
    ),
    "both sides of an addition, partly": (
        lambda m, x: m.c(m.a(x) + m.b(x)),
        {"a": nn.Linear(3, 8), "b": nn.Linear(3, 8), "c": nn.Linear(8, 2)},
        (4, 7, 3),
        {"a": {"rows": [1, 4, 5], "bias": [1]}, "b": {"rows": [4, 6], "bias": [4]}},
        {"a": (5, 3), "b": (6, 3), "c": (2, 7)},
    ),
    "one consumer of several, zero weights": (
        lambda m, x: m.b(F.relu(m.a(x))).mean((2, 3)) + m.c(F.relu(m.a(x)).mean((2, 3))),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 3, 2, 1), "c": nn.Linear(8, 4)},
        (2, 3, 7, 6),
        {"b": {"columns": [0, 3, 7]}},
        {"a": (8, 3, 1, 1), "b": (4, 5, 3, 3), "c": (4, 8)},
    ),
    "a model output": (
        lambda m, x: (lambda y: (y, m.b(y)))(m.a(x)),
        {"a": nn.Linear(3, 8), "b": nn.Linear(8, 4)},
        (2, 3),
        {"a": {"rows": [2, 3]}, "b": {"columns": [6], "rows": [0]}},
        {"a": (6, 3), "b": (3, 5)},
    ),
    "constants behind padding, one of them carries the others": (
        lambda m, x: (lambda y: m.b(y).mean((2, 3)) + y.softmax(1).mean((2, 3))[:, :4])(m.a(x).sigmoid()),
        {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 4, 3, padding=1)},
        (2, 3, 5, 5),
        {"a": {"rows": [0, 1, 2, 3], "bias": [0, 1]}},
        {"a": (4, 3, 1, 1), "b": (4, 5, 3, 3)},
    ),
    "a transposed convolution": (
        lambda m, x: m.c(m.a(x) + m.b(x)),
        {"a": nn.ConvTranspose2d(3, 6, 3, 2), "b": nn.ConvTranspose2d(3, 6, 3, 2), "c": nn.Conv2d(6, 2, 1)},
        (2, 3, 4, 5),
        {"a": {"columns": [0, 5]}},
        {"a": (3, 4, 3, 3), "b": (3, 6, 3, 3), "c": (2, 6, 1, 1)},
    ),
    "what the layer in front of it scatters": (
        lambda m, x: (lambda y: y * m.b(y).sigmoid())(m.a(x)),
        {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(6, 1, 1)},
        (2, 3, 4, 4),
        {"a": {"rows": [1]}, "b": {"columns": [0, 4]}},
        {"a": (5, 3, 1, 1), "b": (1, 3, 1, 1)},
    ),
    "addmm": (
        lambda m, x: m.c(torch.addmm(m.p.bias, x, m.p.weight.t()) + m.b(x)),
        {"p": nn.Linear(3, 8), "b": nn.Linear(3, 8), "c": nn.Linear(8, 2)},
        (4, 3),
        {"p": {"rows": [1, 4]}},
        {"p": (6, 3), "b": (8, 3), "c": (2, 8)},
    ),
    "every row": (
        lambda m, x: m.c(m.a(x) + m.b(x)),
        {"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(4, 2)},
        (4, 3),
        {"a": {"rows": [0, 1, 2, 3]}},
        {"a": (1, 1), "b": (4, 3), "c": (2, 4)},
    ),
}  # fmt: skip


@pytest.mark.usefixtures("_free")
@pytest.mark.parametrize("name", CASES)
def test_a_layer_loses_what_it_alone_does_without(name: str) -> None:
    body, layers, shape, plan, left = CASES[name]
    small = shrunk(Function(body, **copy.deepcopy(layers)), image(*shape), plan)
    assert {layer: weight_shape(small, layer) for layer in left} == left
    again = fxcompress.speedup(small)
    assert again.code == small.code
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in small.state_dict().items()
    }


def test_what_is_not_worth_its_price_stays() -> None:
    body, layers, shape, plan, _ = CASES["one side of an addition"]
    small = shrunk(Function(body, **copy.deepcopy(layers)), image(*shape), plan)
    assert inserted(small) == []
    assert weight_shape(small, "a") == (8, 3, 3, 3)
    assert not [name for name, _ in small.named_buffers() if "compact" in name]


def test_what_is_worth_it_goes_without_being_asked() -> None:
    model = Function(
        lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(64, 64, 3, padding=1), b=nn.Conv2d(64, 64, 3, padding=1)
    )
    small = shrunk(model, image(2, 64, 16, 16), {"a": {"rows": range(40)}, "b": {"columns": range(24, 64)}})
    assert weight_shape(small, "a") == (24, 64, 3, 3)
    assert weight_shape(small, "b") == (64, 24, 3, 3)
    assert sorted(inserted(small)) == ["gather_channels", "scatter_channels"]


def test_the_costs_are_the_recorded_ones() -> None:
    record = json.loads((RESULTS / "long" / "compaction.json").read_text(encoding="utf-8"))
    assert Costs(**record["costs"]) == COSTS


@pytest.mark.usefixtures("_free")
def test_masks_chosen_layer_by_layer_leave_their_widths_in_a_residual_network() -> None:
    x = image(2, 3, 9, 8)
    masked = per_layer(resnet(), x)
    small = fxcompress.speedup(masked)
    check_exact(small, masked, x)
    check_exact(small, masked, image(2, 3, 12, 7))
    widths = {name: weight_shape(small, name)[0] for name in ("0", "3.b", "4.b", "4.down")}
    assert widths == dict.fromkeys(widths, 6)
    # Constants of BatchNorm behind padding cost one carrier channel.
    assert weight_shape(small, "3.a")[0] <= 7
    assert any("compacted: the layer itself lost" in reason for _, reason in small.report.kept)


@pytest.mark.usefixtures("_free")
def test_in_train_mode_a_norm_behind_sees_the_same_tensor() -> None:
    net = Function(
        lambda m, x: m.c(F.relu(m.n(m.a(x)) + x)),
        a=nn.Conv2d(6, 6, 3, padding=1), n=nn.BatchNorm2d(6), c=nn.Conv2d(6, 2, 1),
    )  # fmt: skip
    model, x = ready(net), image(4, 6, 5, 5)
    masks = make_masks(model, {"a": {"rows": [0, 2, 3]}})
    small, masked = fxcompress.speedup(model, x, masks=masks).train(), apply_masks(model, masks).train()
    assert weight_shape(small, "a") == (3, 6, 3, 3)
    assert relative_error(small(x), masked(x)) <= EXACT
    for name, buffer in masked.named_buffers():
        torch.testing.assert_close(small.get_buffer(name), buffer, rtol=EXACT, atol=EXACT)
    small(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())


@pytest.mark.usefixtures("_free")
def test_a_compacted_model_can_be_masked_and_compacted_again() -> None:
    x = image(2, 3, 9, 8)
    small = fxcompress.speedup(per_layer(resnet(), x))
    smaller = small
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        masks: Masks = {}
        for name in ("0", "3.a", "3.b", "4.a", "4.b"):
            weight = smaller.get_submodule(name).get_parameter("weight")
            mask = torch.ones_like(weight)
            mask[torch.randint(len(mask), (1,), generator=generator)] = 0
            masks[name] = {"weight": mask}
        masked = apply_masks(smaller, masks)
        smaller = fxcompress.speedup(smaller, masks=masks)
        check_exact(smaller, masked, x)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())
    assert len(inserted(smaller)) <= len(inserted(small)) + 2


@pytest.mark.usefixtures("_free")
def test_what_others_no_longer_need_needs_no_gather() -> None:
    model = Function(
        lambda m, x: m.b(m.a(x)) + m.c(m.a(x)), a=nn.Linear(3, 8), b=nn.Linear(8, 4), c=nn.Linear(8, 4)
    )
    x = image(2, 3)
    small = shrunk(model, x, {"b": {"columns": [0, 1, 5]}})
    assert inserted(small) == ["gather_channels"]
    masks = make_masks(small, {"c": {"columns": [0, 1, 5]}})
    smaller = fxcompress.speedup(small, masks=masks)
    check_exact(smaller, apply_masks(small, masks), x)
    assert inserted(smaller) == []
    assert weight_shape(smaller, "a") == (5, 3)


@pytest.mark.usefixtures("_free")
def test_layers_that_need_the_same_channels_share_a_gather() -> None:
    model = Function(
        lambda m, x: (lambda y: m.q(y) * m.k(y) + m.v(y))(m.a(x)),
        a=nn.Linear(3, 8), q=nn.Linear(8, 4), k=nn.Linear(8, 4), v=nn.Linear(8, 4),
    )  # fmt: skip
    small = shrunk(model, image(2, 3), {name: {"columns": [0, 3, 7]} for name in ("q", "k")})
    assert inserted(small) == ["gather_channels"]
    assert [weight_shape(small, name)[1] for name in "qkv"] == [5, 5, 8]


@pytest.mark.usefixtures("_free")
@pytest.mark.parametrize("round_to", [2, 4])
def test_widths_are_rounded(round_to: int) -> None:
    x = image(2, 3, 9, 8)
    masked = per_layer(resnet(16), x)
    small = fxcompress.speedup(masked, round_to=round_to)
    check_exact(small, masked, x)
    assert inserted(small)
    assert all(weight_shape(small, name)[0] % round_to == 0 for name in ("0", "3.a", "3.b", "4.a", "4.b"))


@pytest.mark.usefixtures("_free")
def test_files_copies_and_onnx_hold_the_same_model(tmp_path: Path) -> None:
    x = image(2, 3, 9, 8)
    small = fxcompress.speedup(per_layer(resnet(), x))
    names = set(resnet().state_dict())
    assert {name for name in small.state_dict() if name not in names and not name.startswith("_")} == set()
    fxcompress.save(small, tmp_path / "small.pt2")
    for twin in (fxcompress.load(tmp_path / "small.pt2"), copy.deepcopy(small)):
        assert relative_error(run(twin, (x,)), run(small, (x,))) == 0
        assert inserted(twin) == inserted(small) != []
    small.load_state_dict(fxcompress.load(tmp_path / "small.pt2").state_dict())
    report = fxcompress.export_onnx(small.float(), tmp_path / "small.onnx", x.float())
    assert report.batch_is_dynamic
    assert report.max_relative_difference is not None


@pytest.mark.usefixtures("_free")
def test_pruners_mask_both_sides_of_what_was_inserted() -> None:
    x = image(2, 3, 9, 8)
    small = fxcompress.speedup(per_layer(resnet(), x))
    again = fxcompress.compile(small, [{"sparsity": 0.3, "op_types": ["Conv2d"]}], x)
    smaller = fxcompress.speedup(again)
    check_exact(smaller, again.eval(), x)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())


def test_tokens_are_gathered_and_scattered_along_the_last_dimension() -> None:
    index, rest = torch.tensor([0, 2]), torch.tensor([9.0, 7.0, 9.0])
    x = image(2, 4, 3).float()
    gathered = fxcompress.ops.gather_channels(x, index, 2)
    assert torch.equal(gathered, x[..., [0, 2]])
    scattered = fxcompress.ops.scatter_channels(gathered, index, rest, 2)
    assert torch.equal(scattered[..., [0, 2]], gathered)
    assert bool((scattered[..., 1] == 7).all())


@pytest.mark.usefixtures("_free")
@settings(deadline=None, max_examples=8, suppress_health_check=list(HealthCheck))
@given(cases())
def test_every_law_holds_where_everything_is_compacted(case: tuple[Network, Pruning]) -> None:
    try:
        laws.check(laws.Subject(*case))
    except laws.Unsuited:
        reject()
