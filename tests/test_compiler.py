"""``compile`` and ``speedup`` end to end."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import ConfigError, PassError, SpeedupError
from fxcompress.pruning import get_masks
from fxcompress.rules.convolution import Convolution
from fxcompress.rules.linear import Linear
from tests.helpers import (
    EXACT,
    apply_masks,
    check_exact,
    image,
    make_masks,
    ready,
    relative_error,
    run,
    size,
    weight_shape,
)

X = image(3, 3, 8, 8)
CONFIG = [{"sparsity": 0.5, "op_types": ["Conv2d", "Linear"]}, {"exclude": True, "op_names": ["head"]}]


class Net(nn.Module):
    """A residual block with BatchNorm, padding and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.fc = nn.Linear(16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.b(F.gelu(self.a(x)))
        y: Tensor = self.head(torch.sigmoid(self.fc(x.mean((2, 3)))))
        return y


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return ready(Net())


@pytest.fixture(scope="module")
def masked(model: nn.Module) -> fxcompress.CompiledModule:
    return fxcompress.compile(model, CONFIG, X)


@pytest.fixture(scope="module")
def small(masked: fxcompress.CompiledModule) -> fxcompress.CompiledModule:
    return fxcompress.speedup(masked)


def test_widths_are_those_the_config_asked_for(small: fxcompress.CompiledModule) -> None:
    assert weight_shape(small, "stem") == (8, 3, 3, 3)
    assert weight_shape(small, "a") == (4, 8, 3, 3)
    assert weight_shape(small, "b") == (8, 4, 3, 3)
    assert weight_shape(small, "fc") == (6, 8)
    assert weight_shape(small, "head") == (4, 6)
    assert small.get_submodule("norm").num_features == 8
    assert "Conv2d(3, 8, kernel_size" in str(small)


def test_the_small_model_is_the_masked_one(
    masked: fxcompress.CompiledModule, small: fxcompress.CompiledModule
) -> None:
    check_exact(small, masked, X)
    check_exact(small, masked, image(2, 3, 11, 9))


def test_neither_model_nor_masked_model_changes(model: nn.Module, masked: fxcompress.CompiledModule) -> None:
    state = {name: t.clone() for name, t in masked.state_dict().items()}
    before = run(model, (X,))
    fxcompress.speedup(masked)
    assert all(torch.equal(t, state[name]) for name, t in masked.state_dict().items())
    assert relative_error(run(model, (X,)), before) == 0
    assert isinstance(model, Net)


def test_the_small_model_has_parameters_of_its_own(
    model: nn.Module, small: fxcompress.CompiledModule
) -> None:
    shared = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in shared for p in small.parameters())


def test_its_state_dict_has_the_original_names_and_no_masks(
    model: nn.Module, small: fxcompress.CompiledModule
) -> None:
    assert set(small.state_dict()) == set(model.state_dict())


def test_it_trains(small: fxcompress.CompiledModule) -> None:
    twin = copy.deepcopy(small).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    before = twin.get_submodule("norm").get_buffer("running_mean").clone()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = twin(X).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in twin.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(twin.get_submodule("norm").get_buffer("running_mean"), before)


def test_fine_tuning_under_masks_and_then_speedup(model: nn.Module) -> None:
    tuned = fxcompress.compile(copy.deepcopy(model), CONFIG, X).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(X).square().mean().backward()
        optimizer.step()
    small = fxcompress.speedup(tuned)
    assert small.training
    check_exact(small, tuned, X)


def test_a_second_speedup_changes_nothing(small: fxcompress.CompiledModule) -> None:
    again = fxcompress.speedup(small)
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in small.named_parameters()
    }
    assert relative_error(run(again, (X,)), run(small, (X,))) <= EXACT


def test_the_report_has_the_numbers(model: nn.Module, small: fxcompress.CompiledModule) -> None:
    report = small.report
    assert (report.parameters.before, report.parameters.after) == (size(model), size(small))
    changed = {layer.name: (layer.before, layer.after) for layer in report.layers}
    assert changed["a"] == ((8, 16, 3, 3), (4, 8, 3, 3))
    assert report.kept == ()
    assert "stem" in str(report)


PLAN: dict[str, dict[str, Any]] = {
    "stem": {"rows": [0, 3, 5], "bias": [0, 5]},
    "a": {"rows": [1, 2], "bias": [2]},
}


def test_masks_from_a_dict_and_from_a_file_are_the_same(model: nn.Module, tmp_path: Path) -> None:
    masks = make_masks(model, PLAN)
    by_dict = fxcompress.speedup(model, X, masks=masks)
    fxcompress.save_masks(masks, tmp_path / "masks.safetensors")
    by_file = fxcompress.speedup(model, X, masks=tmp_path / "masks.safetensors")
    assert relative_error(run(by_file, (X,)), run(by_dict, (X,))) == 0
    check_exact(by_dict, apply_masks(model, masks), X)
    assert weight_shape(by_dict, "a")[0] == 7, "filter 1 is a constant behind padding"


def _one_more(masked: fxcompress.CompiledModule) -> dict[str, dict[str, Tensor]]:
    """The masks on layer ``a`` with one more filter masked."""
    masks = {name: mask.clone() for name, mask in get_masks(masked)["a"].items()}
    free = int(masks["bias"].nonzero()[0])
    masks["weight"][free] = 0
    masks["bias"][free] = 0
    return {"a": masks}


def test_masks_from_outside_come_on_top_of_the_models_own(masked: fxcompress.CompiledModule) -> None:
    twin = copy.deepcopy(masked)
    small = fxcompress.speedup(twin, masks=_one_more(twin))
    assert weight_shape(small, "a")[0] == 3


def test_masks_from_outside_leave_the_compiled_model_alone(masked: fxcompress.CompiledModule) -> None:
    twin = copy.deepcopy(masked)
    fxcompress.speedup(twin, masks=_one_more(twin))
    assert torch.equal(twin.get_buffer("a.weight_mask"), masked.get_buffer("a.weight_mask"))


def test_masks_from_outside_cannot_bring_masked_filters_back(masked: fxcompress.CompiledModule) -> None:
    twin = copy.deepcopy(masked)
    ones = {name: torch.ones_like(mask) for name, mask in get_masks(twin)["a"].items()}
    assert weight_shape(fxcompress.speedup(twin, masks={"a": ones}), "a")[0] == 4


@pytest.mark.parametrize("multiple", [1, 3, 4, 5])
def test_round_to_keeps_multiples(masked: fxcompress.CompiledModule, multiple: int) -> None:
    small = fxcompress.speedup(masked, round_to=multiple)
    check_exact(small, masked, X)
    for layer, full, kept in (("stem", 16, 8), ("a", 8, 4), ("fc", 12, 6)):
        expected = min(-(-kept // multiple) * multiple, full)
        assert weight_shape(small, layer)[0] == expected, layer


@pytest.mark.parametrize("multiple", [0, -2, 2.5, "8"])
def test_round_to_must_be_a_positive_number(masked: fxcompress.CompiledModule, multiple: Any) -> None:
    with pytest.raises(SpeedupError, match="round_to: expected a positive number of channels"):
        fxcompress.speedup(masked, round_to=multiple)


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"stemm": {"weight": torch.ones(16, 3, 3, 3)}}, "did you mean 'stem'"),
        ({"stem": {"weight": torch.ones(8, 3, 3, 3)}}, r"16, 3, 3, 3"),
        ({"stem": {"wheight": torch.ones(16, 3, 3, 3)}}, "wheight"),
        ({"stem": {"weight": torch.full((16, 3, 3, 3), 0.5)}}, "0.5|0 and 1|0 or 1"),
    ],
    ids=["layer", "shape", "parameter", "values"],
)
def test_wrong_masks_are_refused(model: nn.Module, masks: dict[str, dict[str, Tensor]], words: str) -> None:
    with pytest.raises(SpeedupError, match=words):
        fxcompress.speedup(model, X, masks=masks)


def test_verification_raises_when_a_rule_forgets_the_constants(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = make_masks(model, {"fc": {"rows": [0, 1], "bias": [0, 1]}})
    fxcompress.speedup(model, X, masks=masks)
    monkeypatch.setattr(Linear, "shrink", lambda *_: None)  # sigmoid(0) = 0.5 is no longer folded
    with pytest.raises(SpeedupError, match="differs from the masked one"):
        fxcompress.speedup(model, X, masks=masks)
    wrong = fxcompress.speedup(model, X, masks=masks, verify=False)
    assert relative_error(run(wrong, (X,)), run(fxcompress.capture(model, X), (X,))) > 1e-6


def test_verification_raises_when_a_rule_breaks_shapes(
    masked: fxcompress.CompiledModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Convolution.flow

    def unrelated(self: Convolution, call: Any, flow: Any) -> None:
        good(self, call, flow)
        axes = list(flow.map.of[call.node])
        axes[1] = type(axes[1])(axes[1].size)
        flow.map.of[call.node] = tuple(axes)

    monkeypatch.setattr(Convolution, "flow", unrelated)
    with pytest.raises((PassError, SpeedupError)):
        fxcompress.speedup(masked)


def test_dependency_aware_must_be_a_flag(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="dependency_aware: expected True or False, got 'yes'"):
        fxcompress.compile(model, CONFIG, X, dependency_aware="yes")  # type: ignore[arg-type]


def test_speedup_in_the_dtype_the_compiled_model_was_moved_to(masked: fxcompress.CompiledModule) -> None:
    module = copy.deepcopy(masked).float()
    small = fxcompress.speedup(module, X.float())
    assert relative_error(run(small, (X.float(),)), run(module, (X.float(),))) <= 1e-4


def test_masks_on_layers_that_are_added_need_not_agree(model: nn.Module) -> None:
    module = fxcompress.compile(model, CONFIG, X, dependency_aware=False)
    small = fxcompress.speedup(module)
    check_exact(small, module, X)
    assert size(small) < size(model)


def test_what_no_output_depends_on_is_dropped() -> None:
    """Layers that are computed for nothing would have no gradient."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x).relu()
            self.c(hidden).sigmoid()
            result: Tensor = self.b(hidden)
            return result

    small = fxcompress.speedup(
        fxcompress.compile(Unused(), [{"sparsity": 0.5, "op_names": ["a"]}], torch.randn(2, 4))
    )
    assert not hasattr(small, "c")
    small(torch.randn(3, 4)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_a_module_that_goes_by_two_names_keeps_what_either_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            both = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.first, self.second, self.head = (
                nn.ModuleDict({"x": both}),
                nn.ModuleDict({"x": both}),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.second["x"]:  # type: ignore[attr-defined]
                x = layer(x).tanh()
            result: Tensor = self.head(x)
            return result

    x = torch.randn(2, 4)
    small = fxcompress.speedup(fxcompress.compile(Shared(), [{"sparsity": 0.5}], x))
    assert {tuple(p.shape) for p in small.parameters()} >= {(2, 4), (2, 2)}
