"""save and load: what comes back is the model that was saved, bit for bit."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress import ops
from fxcompress.errors import ExportError
from fxcompress.export.archive import load, save
from fxcompress.export.hierarchy import StoredIdentity, layer_classes
from fxcompress.graph.capture import capture
from fxcompress.graph.module import CompiledModule, Scope
from tests.export.models import CASES, build, vision_model


def equal(a: Any, b: Any) -> bool:
    """Same structure, same bits."""
    (left, left_spec), (right, right_spec) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    if left_spec != right_spec:
        return False
    pairs = zip(left, right, strict=True)
    return all(
        torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, Tensor) else x == y for x, y in pairs
    )


def run(module: nn.Module, inputs: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def meta_of(module: CompiledModule) -> list[Any]:
    kept = ("tensor", "aten", "module", "nn_module_stack")
    return [(n.name, n.op, {k: v for k, v in n.meta.items() if k in kept}) for n in module.graph.nodes]


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_model_is_the_saved_one(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    saved = capture(model.eval(), inputs)
    save(saved, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert equal(run(saved, inputs), run(loaded, inputs))
    assert equal(dict(saved.state_dict()), dict(loaded.state_dict()))
    assert list(saved.state_dict()) == list(loaded.state_dict())
    assert [n for n, _ in saved.named_buffers()] == [n for n, _ in loaded.named_buffers()]
    assert saved.code == loaded.code
    assert meta_of(saved) == meta_of(loaded)
    assert equal(saved.example_inputs, loaded.example_inputs)
    assert saved.batch_is_dynamic == loaded.batch_is_dynamic
    strides = {n: p.stride() for n, p in saved.named_parameters()}
    assert strides == {n: p.stride() for n, p in loaded.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_saving_a_loaded_model_gives_the_identical_file(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    save(capture(model, inputs), tmp_path / "a")
    save(load(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("name", ["residual", "encoder", "tied"])
def test_a_loaded_model_trains_like_the_saved_one(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    saved = capture(model, inputs).train()
    save(saved, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert loaded.training
    for module in (saved, loaded):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        torch.manual_seed(2)
        for _ in range(2):
            optimizer.zero_grad()
            module(inputs).square().mean().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
            optimizer.step()
    assert equal(dict(saved.state_dict()), dict(loaded.state_dict()))
    assert equal(run(saved.eval(), inputs), run(loaded.eval(), inputs))
    assert equal(run(loaded, inputs), run(copy.deepcopy(loaded), inputs))


def test_tied_weights_and_shared_modules_stay_tied_and_are_stored_once(tmp_path: Path) -> None:
    model, ids = build("tied")
    save(capture(model, ids), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embed.weight")
    assert len(list(loaded.parameters())) == len(list(model.parameters()))


def test_buffers_keep_their_persistence_and_parameters_their_gradient_flag(tmp_path: Path) -> None:
    model, inputs = build("several")
    model.get_parameter("scale").requires_grad_(False)
    save(capture(model, inputs), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert "steps" in loaded.state_dict()
    assert "shift" not in loaded.state_dict()
    assert not loaded.get_parameter("scale").requires_grad
    assert loaded.get_parameter("norm.weight").requires_grad


def test_a_module_that_does_nothing_in_eval_mode_becomes_an_identity_and_a_note(tmp_path: Path) -> None:
    model, inputs = build("skip")
    save(capture(model, inputs), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert isinstance(loaded.get_submodule("skip"), StoredIdentity)
    assert any("skip" in note and "Skip" in note for note in loaded.notes)
    assert "in place of Skip" in repr(loaded)


def test_the_loaded_model_can_be_captured_again(tmp_path: Path) -> None:
    model, inputs = build("residual")
    save(capture(model.eval(), inputs), tmp_path / "a")
    again = capture(load(tmp_path / "a"))
    assert equal(run(model, inputs), run(again, inputs))


def masked(module: CompiledModule, layer: str) -> None:
    """Mask the weight of ``layer`` by hand, as the mask pass does."""
    [node] = list(module.graph.find_nodes(op="call_module", target=layer))
    owner = module.get_submodule(layer)
    mask = (torch.rand(owner.get_parameter("weight").shape) > 0.5).float()
    owner.register_buffer("weight_mask", mask)
    with module.graph.inserting_before(node):
        reads = [
            module.graph.create_node("get_attr", n)
            for n in (f"{layer}.weight", f"{layer}.weight_mask", layer)
        ]
        product = module.graph.call_function(torch.ops.aten.mul.Tensor, (reads[0], reads[1]))
        product.meta["masked_parameter"] = f"{layer}.weight"
        call = module.graph.call_function(ops.call, (reads[2], *node.args), {"weight": product})
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)
    module.recompile()


def test_a_masked_model_keeps_masks_and_the_templates_of_its_calls(tmp_path: Path) -> None:
    model, inputs = build("residual")
    saved = capture(model.eval(), inputs)
    masked(saved, "grouped")
    masked(saved, "fc")
    save(saved, tmp_path / "a")
    loaded = load(tmp_path / "a")
    save(loaded, tmp_path / "b")
    assert equal(run(saved, inputs), run(loaded, inputs))
    assert meta_of(saved) == meta_of(loaded)
    assert [n.meta.get("masked_parameter") for n in saved.graph.nodes] == [
        n.meta.get("masked_parameter") for n in loaded.graph.nodes
    ]
    assert torch.equal(loaded.get_buffer("fc.weight_mask"), saved.get_buffer("fc.weight_mask"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_narrowed_layer_is_rebuilt_at_its_new_width(tmp_path: Path) -> None:
    model, inputs = build("sequential")
    saved = capture(model.eval(), inputs)
    last = saved.get_submodule("5")
    assert isinstance(last, nn.Linear)
    last.weight, last.bias, last.out_features = nn.Parameter(last.weight[:2]), nn.Parameter(last.bias[:2]), 2
    save(saved, tmp_path / "a")
    assert (
        repr(load(tmp_path / "a").get_submodule("5")) == "Linear(in_features=28, out_features=2, bias=True)"
    )
    last.out_features = 3
    with pytest.raises(
        ExportError, match=r"5 \(torch.nn.modules.linear.Linear.*its weight has shape \(2, 28\)"
    ):
        save(saved, tmp_path / "a")


def test_every_torch_nn_layer_is_rebuilt_with_its_arguments(tmp_path: Path) -> None:
    layers = [
        nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        nn.Conv3d(2, 3, 3, padding="same", padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.LayerNorm((3, 4), elementwise_affine=False),
        nn.LayerNorm(4, bias=False),
        nn.RMSNorm(4),
        nn.GroupNorm(2, 4),
        nn.Linear(3, 4, bias=False),
        nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
        nn.Bilinear(2, 3, 4),
        nn.PReLU(3),
        nn.Hardtanh(-2, 3, inplace=True),
        nn.ReLU6(),
        nn.LeakyReLU(0.3),
        nn.Softmax(dim=1),
        nn.GELU("tanh"),
        nn.Upsample(scale_factor=(2.0, 3.0), mode="bilinear", align_corners=True),
        nn.AdaptiveAvgPool2d((1, None)),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.PixelShuffle(2),
        nn.Unflatten(1, (2, 3)),
        nn.ConstantPad1d((1, 2), 3.5),
        nn.Dropout2d(0.3),
        nn.LocalResponseNorm(3, alpha=0.1),
        nn.Threshold(0.1, 20),
    ]
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    module = CompiledModule(nn.ModuleDict({f"layer{i}": layer for i, layer in enumerate(layers)}), graph)
    save(module, tmp_path / "a")
    loaded = load(tmp_path / "a")
    for i, layer in enumerate(layers):
        twin = loaded.get_submodule(f"layer{i}")
        assert type(twin) is type(layer), layer
        assert repr(twin) == repr(layer)
        assert equal(dict(twin.state_dict()), dict(layer.state_dict())), layer
    assert "Conv2d" in layer_classes()
    assert "Sequential" not in {type(m).__name__ for m in loaded.modules() if isinstance(m, Scope)}


class Scaled(nn.Linear):
    """A layer class of the user's."""


def test_an_unknown_layer_is_refused_by_name_with_a_remedy_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_text("old")
    model, inputs = build("sequential")
    module = capture(model, inputs)
    module._modules["5"] = Scaled(28, 3)
    with pytest.raises(ExportError, match=r"5 \(.*Scaled, called by node _5\).*\n.*torch.nn layers"):
        save(module, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_plain_module_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected a compiled model, got Linear.*fxcompress\.capture"):
        save(nn.Linear(2, 2), "unused")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["save_file", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = build("sequential")
    module = capture(model.eval(), inputs)
    save(module, tmp_path / "model")
    before = (tmp_path / "model").read_bytes()

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file" if step == "save_file" else "os.replace", fail)
    with torch.no_grad():
        module.get_parameter("5.weight").zero_()
    with pytest.raises(KeyboardInterrupt):
        save(module, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["resnet18", pytest.param("mobilenet_v3_small", marks=pytest.mark.slow)])
def test_torchvision_models_round_trip(name: str, tmp_path: Path) -> None:
    model, x = vision_model(name).eval(), torch.randn(2, 3, 64, 64)
    saved = capture(model, x)
    save(saved, tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert equal(run(saved, x), run(loaded, x))
    assert list(loaded.state_dict()) == list(model.state_dict())
    weights = sum(t.numel() * t.element_size() for t in saved.state_dict().values())
    assert (tmp_path / "a").stat().st_size < 1.02 * weights + 1_000_000


class Pair(NamedTuple):
    """A tuple-like output."""

    left: Tensor
    right: Tensor


class Named(nn.Module):
    """Returns a named tuple."""

    def forward(self, x: Tensor) -> Pair:
        return Pair(x + 1, x * 2)


@dataclass
class Fields:
    """A dataclass output."""

    left: Tensor
    right: Tensor


class Structured(nn.Module):
    """Returns a dataclass inside a list."""

    def forward(self, x: Tensor) -> list[Fields]:
        return [Fields(x + 1, x * 2)]


def test_output_classes_of_the_model_become_tuples_and_dicts_with_a_note(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    save(capture(Named(), x), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert equal(loaded(x), (x + 1, x * 2))
    assert any("Pair" in note and "tuple" in note for note in loaded.notes)
    pytree.register_dataclass(Fields, serialized_type_name="tests.Fields")
    save(capture(Structured(), x), tmp_path / "a")
    loaded = load(tmp_path / "a")
    assert equal(loaded(x), [{"left": x + 1, "right": x * 2}])
    assert any("Fields" in note and "dict" in note for note in loaded.notes)
