"""Capture: the compiled module trains, evaluates, saves and prints like the model it was made from."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxcompress
from fxcompress.errors import CaptureError
from fxcompress.graph.module import CompiledModule
from tests.helpers import EXACT, Function, image, operators, ready, relative_error, run, targets


class Net(nn.Module):
    """BatchNorm and dropout with unusual settings."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 8, 3, padding=1),
                norm=nn.BatchNorm2d(8, momentum=0.01, eps=1e-2),
                act=nn.ReLU(),
                drop=nn.Dropout(0.7),
            )
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).mean((2, 3)))
        return y


X = image(4, 3, 6, 6)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, CompiledModule]:
    model = ready(Net())
    return model, fxcompress.capture(model, X)


def test_leaf_modules_are_called_under_their_own_names(pair: tuple[nn.Module, CompiledModule]) -> None:
    _, captured = pair
    called = [t for t in targets(captured) if t.startswith(("features", "head"))]
    assert called == ["features.conv", "features.norm", "features.act", "features.drop", "head"]
    assert "Conv2d(3, 8" in str(captured)


def test_module_facts_are_kept(pair: tuple[nn.Module, CompiledModule]) -> None:
    captured = pair[1]
    norm, drop = captured.get_submodule("features.norm"), captured.get_submodule("features.drop")
    assert (str(norm.momentum), str(norm.eps), str(drop.p)) == ("0.01", "0.01", "0.7")


def test_parameters_are_shared_and_state_dict_keys_equal(pair: tuple[nn.Module, CompiledModule]) -> None:
    model, captured = pair
    assert list(captured.state_dict()) == list(model.state_dict())
    assert all(a is b for a, b in zip(captured.parameters(), model.parameters(), strict=True))


def test_the_original_keeps_its_class_mode_and_code() -> None:
    model = Net().train()
    model.features.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    entries = {name: set(vars(m)) for name, m in model.named_modules()}
    captured = fxcompress.capture(model, X.float())
    assert type(model) is Net
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert {name: set(vars(m)) for name, m in model.named_modules()} == entries
    assert captured.training
    captured.eval()
    assert model.training, "the captured model has a mode of its own"


def test_batch_norm_and_dropout_follow_train_mode_as_in_the_original(
    pair: tuple[nn.Module, CompiledModule],
) -> None:
    eager, captured = copy.deepcopy(pair[0]).train(), copy.deepcopy(pair[1]).train()
    for seed in range(3):
        torch.manual_seed(seed)
        expected = eager(X)
        torch.manual_seed(seed)
        assert relative_error(captured(X), expected) <= EXACT
    for (name, a), b in zip(captured.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT, msg=name)
    assert int(captured.get_submodule("features.norm").num_batches_tracked) == 3  # type: ignore[arg-type]
    assert relative_error(run(captured, (X,)), run(eager, (X,))) <= EXACT


def test_a_frozen_norm_stays_in_eval_mode_while_the_rest_trains(
    pair: tuple[nn.Module, CompiledModule],
) -> None:
    captured = copy.deepcopy(pair[1]).train()
    norm = captured.get_submodule("features.norm").eval()
    before = {name: b.clone() for name, b in norm.named_buffers()}
    captured(X)
    assert all(torch.equal(before[name], b) for name, b in norm.named_buffers())


def test_an_optimizer_on_the_originals_parameters_trains_the_captured_model() -> None:
    model = ready(Net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    captured = fxcompress.capture(model, X).train()
    weights = [p for p in model.parameters() if p.dim() > 1]
    before = [p.detach().clone() for p in weights]
    first = captured(X).square().mean()
    first.backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert float(captured(X).detach().square().mean()) != float(first.detach())


def test_copies_and_state_dicts(pair: tuple[nn.Module, CompiledModule]) -> None:
    model, captured = pair
    twin = copy.deepcopy(captured)
    assert relative_error(run(twin, (X,)), run(captured, (X,))) == 0
    twin.head.weight.data.zero_()  # type: ignore[union-attr, operator]
    assert bool(model.head.weight.any())  # type: ignore[union-attr, operator]
    buffer = io.BytesIO()
    torch.save(captured.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert relative_error(run(twin, (X,)), run(captured, (X,))) == 0
    fresh = Net().double()
    fresh.load_state_dict(captured.state_dict())
    assert relative_error(run(fresh, (X,)), run(captured, (X,))) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_changes_like_the_originals(pair: tuple[nn.Module, CompiledModule], dtype: torch.dtype) -> None:
    model, captured = copy.deepcopy(pair[0]).to(dtype), copy.deepcopy(pair[1]).to(dtype)
    got = run(captured, (X.to(dtype),))
    assert got.dtype == dtype
    assert relative_error(got, run(model, (X.to(dtype),))) <= 1e-5


def test_hooks_fire_on_the_captured_models_modules(pair: tuple[nn.Module, CompiledModule]) -> None:
    captured = copy.deepcopy(pair[1])
    seen: list[str] = []
    captured.get_submodule("features.conv").register_forward_hook(lambda *_: seen.append("forward"))
    captured.get_submodule("head").register_forward_pre_hook(lambda *_: seen.append("pre"))
    captured(X)
    assert seen == ["forward", "pre"]


def test_hooks_fire_on_masked_layers_too() -> None:
    module = fxcompress.compile(Net(), [{"sparsity": 0.5, "op_types": ["Conv2d"]}], X.float())
    seen: list[tuple[int, ...]] = []
    module.get_submodule("features.conv").register_forward_hook(lambda _m, _a, y: seen.append(tuple(y.shape)))
    module(X.float())
    assert seen == [(4, 8, 6, 6)]


def test_torch_compile_gives_the_same_output(pair: tuple[nn.Module, CompiledModule]) -> None:
    masked = fxcompress.compile(pair[0], [{"sparsity": 0.5, "op_types": ["Conv2d"]}], X)
    for module in (pair[1], masked):
        faster = torch.compile(copy.deepcopy(module).eval(), backend="eager")
        with torch.no_grad():
            assert relative_error(faster(X), run(module, (X,))) <= EXACT


def test_any_batch_size_and_resolution_where_the_model_takes_them(
    pair: tuple[nn.Module, CompiledModule],
) -> None:
    model, captured = pair
    for batch in (1, 2, 7):
        x = image(batch, 3, 6, 6, seed=batch)
        assert relative_error(run(captured, (x,)), run(model, (x,))) <= EXACT
    assert captured.batch_is_dynamic


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.out(self.embed(ids))
            return y

    model, ids = Tied(), torch.tensor([[1, 2], [3, 4]])
    captured = fxcompress.capture(model, ids)
    assert captured.get_parameter("out.weight") is captured.get_parameter("embed.weight")
    twin = copy.deepcopy(captured)
    assert twin.get_parameter("out.weight") is twin.get_parameter("embed.weight")
    assert len(list(captured.parameters())) == 1
    torch.testing.assert_close(captured(ids), model(ids), rtol=1e-6, atol=1e-6)


def test_a_module_called_twice_is_one_set_of_parameters() -> None:
    model = ready(Function(lambda m, x: m.b(torch.relu(m.b(m.a(x)))), a=nn.Linear(4, 6), b=nn.Linear(6, 6)))
    captured = fxcompress.capture(model, image(3, 4))
    assert list(captured.state_dict()) == list(model.state_dict())
    assert operators(captured).count("linear") == 3
    assert relative_error(run(captured, (image(3, 4),)), run(model, (image(3, 4),))) <= EXACT


def test_a_module_under_two_names_is_one_module() -> None:
    shared = nn.Linear(4, 4)
    model = ready(nn.Sequential(shared, nn.ReLU(), shared))
    captured = fxcompress.capture(model, image(3, 4))
    assert captured.get_submodule("0").get_parameter("weight") is captured.get_submodule("2").get_parameter(
        "weight"
    )
    assert relative_error(run(captured, (image(3, 4),)), run(model, (image(3, 4),))) <= EXACT


# -- inputs and outputs ----------------------------------------------------------------------------------


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Answer:
    logits: Tensor
    extras: list[Tensor]


pytree.register_dataclass(Answer, serialized_type_name="tests.Answer")


class Forms(nn.Module):
    """Two inputs, and outputs in the form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(4, 3), form

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Any:
        y = self.layer(x)
        z = y if scale is None else y * scale
        forms = {"tuple": (y, z), "dict": {"y": y, "rest": [z, (y,)]}, "named": Pair(y, z), "tensor": z}
        return Answer(y, [z]) if self.form == "dataclass" else forms[self.form]


@pytest.mark.parametrize("form", ["tuple", "dict", "named", "dataclass", "tensor"])
def test_outputs_keep_their_structure(form: str) -> None:
    model = ready(Forms(form))
    x, scale = image(3, 4), image(3, 1, seed=1)
    captured = fxcompress.capture(model, (x, scale))
    got, expected = run(captured, (x, scale)), run(model, (x, scale))
    assert type(got) is type(expected)
    assert relative_error(got, expected) <= EXACT


def test_keyword_inputs() -> None:
    model = ready(Forms("tensor"))
    inputs = {"x": image(3, 4), "scale": image(3, 1, seed=1)}
    captured = fxcompress.capture(model, inputs)
    assert relative_error(captured(**inputs), model(**inputs)) <= EXACT
    assert captured.example_inputs == ((), inputs)
    larger = {name: torch.cat([t, t]) for name, t in inputs.items()}
    assert relative_error(captured(**larger), model(**larger)) <= EXACT


# -- two-argument compile --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)),
            "(2, 1, 28, 28)",
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)), "(2, 3, 224, 224)"),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 1)), "(2, 2, 256)"),
        (nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 2)), "a vector batch (2, 9)"),
        (nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 6), nn.Linear(6, 2)), "token ids (2, 16) below 11"),
    ],
    ids=["grey", "colour", "signal", "vector", "tokens"],
)
def test_two_arguments_suffice_for_ordinary_models(model: nn.Module, words: str) -> None:
    module = fxcompress.compile(
        model, [{"sparsity": 0.5, "op_types": ["default"]}, {"exclude": True, "op_names": [_last(model)]}]
    )
    assert words in module.notes[0]
    assert any(name.endswith("weight_mask") for name in module.state_dict())


def _last(model: nn.Module) -> str:
    """The name of the last layer with parameters."""
    return list(model.named_parameters())[-1][0].rpartition(".")[0]


def test_a_model_nothing_plausible_runs_on_asks_for_inputs() -> None:
    model = Function(lambda m, x: m.layer(x + torch.zeros(5, 7, 9)), layer=nn.Linear(3, 2))
    with pytest.raises(CaptureError, match=r"(?s)ran on none of the plausible ones.*Pass example_inputs"):
        fxcompress.capture(model)


# -- what cannot be captured -----------------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line the error names
            return F.relu(self.layer(x))
        y: Tensor = self.layer(x)
        return y


def test_the_error_names_the_users_line() -> None:
    with pytest.raises(CaptureError, match=r"(?s)test_capture.py:\d+ \(`if x.sum\(\) > 0:.*torch.where"):
        fxcompress.capture(Branching(), torch.randn(2, 3))


def test_inputs_the_model_does_not_take_are_told_apart() -> None:
    with pytest.raises(CaptureError, match=r"(?s)does not run on the example inputs.*Pass example_inputs"):
        fxcompress.capture(Branching(), torch.randn(2, 5))


def test_something_that_is_no_module_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"expected a torch.nn.Module, got str"):
        fxcompress.capture("resnet18")  # type: ignore[arg-type]


def test_a_failed_capture_leaves_the_model_as_it_was() -> None:
    model = Branching().train()
    with pytest.raises(CaptureError):
        fxcompress.capture(model, torch.randn(2, 3))
    assert model.training
    assert model.layer.training
    assert not model.layer._forward_pre_hooks
    assert "forward" not in vars(model.layer)


@pytest.mark.parametrize("guard", [torch.no_grad, lambda: torch.autocast("cpu", enabled=False)])
def test_regions_without_gradients_or_autocast_are_captured(guard: Callable[[], Any]) -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            with guard():
                y = self.a(x).relu()
                first, second = y.chunk(2, -1)
            result: Tensor = self.b(torch.cat([second, first], -1)) + x.mean()
            return result

    model = ready(Guarded())
    x = torch.randn(3, 4, dtype=torch.float64)
    captured = fxcompress.capture(model, x)
    assert torch.equal(captured(x), model(x))
    assert "wrap" not in str(captured.graph)
    captured(x).sum().backward()
    detached = captured.get_parameter("a.weight").grad is None
    assert detached == (guard is torch.no_grad)
    assert captured.get_parameter("b.weight").grad is not None


def test_autocast_switched_on_inside_the_model_is_refused() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.a(x)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match="autocast"):
        fxcompress.capture(Mixed(), torch.randn(2, 4))


class Decoder(nn.Module):
    """A mask made on the way, which ``nn.Transformer`` looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1], dtype=y.dtype)
        result: Tensor = self.layers(x, y, tgt_mask=mask)
        return result


class Policy(nn.Module):
    """A distribution checks its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.distributions.Normal(self.mean(x), torch.ones(2)).log_prob(x[:, :2])
        return y


class BrokenUnderTrace(nn.Module):
    """Forgets its mask where it learns that it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        mask = None if torch.compiler.is_compiling() else torch.tensor([1.0, 0.0])
        result: Tensor = self.layer(x) * mask
        return result


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Decoder(), (torch.randn(3, 5, 8), torch.randn(3, 4, 8))),
        (Policy(), (torch.randn(3, 4),)),
        (BrokenUnderTrace(), (torch.randn(3, 4),)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_looks_at_values_that_choose_nothing_do_not_stop_the_capture(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    model = model.double().eval()
    wide = tuple(x.double() for x in inputs)
    captured = fxcompress.capture(model, wide)
    assert captured.batch_is_dynamic
    assert relative_error(captured(*wide), model(*wide)) < EXACT


def test_a_fixed_batch_is_that_of_the_example() -> None:
    class Each(nn.Module):
        """One example after the other."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(example) for example in x])

    for batch in (1, 3):
        x = torch.randn(batch, 4)
        model = Each()
        captured = fxcompress.capture(model, x)
        assert not captured.batch_is_dynamic
        assert relative_error(captured(x), model(x)) < 1e-6
