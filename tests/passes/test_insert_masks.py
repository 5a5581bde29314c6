"""insert_masks: mask-multiply nodes on parameters; the result is the model with masked entries zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress import ops
from fxcompress.errors import PassError
from fxcompress.graph.module import CompiledModule
from fxcompress.passes.insert_masks import (
    accept_masks,
    insert_masks,
    mask_activation,
    own_masks,
    restrict_statistics,
)
from tests.helpers import EXACT, Function, image, ready, relative_error, row_mask, run, targets

X = image(3, 4)


def net() -> nn.Module:
    return ready(Function(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2)))


def masked() -> tuple[nn.Module, CompiledModule]:
    model = net()
    module = fxcompress.capture(model, X)
    weight = model.get_parameter("a.weight")
    insert_masks(module, {"a.weight": row_mask(weight, [1, 2]), "a.bias": row_mask(weight[:, 0], [2])})
    return model, module


def test_a_masked_layer_before_and_after() -> None:
    module = fxcompress.capture(net(), X)
    assert targets(module) == ["a", "relu", "b"]
    insert_masks(module, {"a.weight": torch.zeros(6, 4)})
    assert targets(module) == ["mul", "call", "relu", "b"]
    call = next(iter(module.graph.find_nodes(op="call_function", target=ops.call)))
    product = call.kwargs["weight"]
    assert [str(n.target) for n in product.args] == ["a.weight", "a.weight_mask"]
    assert "a_weight_mask" in module.code
    assert "a.weight_mask" in str(module.graph)


def test_the_result_is_the_model_with_masked_entries_zero() -> None:
    model, module = masked()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.get_parameter("a.weight")[[1, 2]] = 0
        expected.get_parameter("a.bias")[2] = 0
    assert relative_error(run(module, (X,)), run(expected, (X,))) <= EXACT
    assert bool(model.get_parameter("a.weight").all()), "the masked parameter keeps its values"


def test_masks_are_buffers_beside_their_parameters() -> None:
    module = masked()[1]
    assert {n for n in module.state_dict() if n.endswith("_mask")} == {"a.weight_mask", "a.bias_mask"}
    module.float()
    assert module.get_buffer("a.weight_mask").dtype == torch.float32
    twin = copy.deepcopy(module)
    twin.get_buffer("a.weight_mask").zero_()
    assert bool(module.get_buffer("a.weight_mask").any())


def test_masked_entries_get_no_gradient() -> None:
    _, module = masked()
    module(X).sum().backward()
    grad = module.get_parameter("a.weight").grad
    assert grad is not None
    assert bool((grad[[1, 2]] == 0).all())
    assert bool(grad[[0, 3]].any())


def test_new_masks_come_on_top_of_those_that_are_there() -> None:
    module = masked()[1]
    before, old = len(module.graph.nodes), module.get_buffer("a.weight_mask")
    insert_masks(module, {"a.weight": row_mask(torch.ones(6, 4), [0])})
    assert len(module.graph.nodes) == before
    assert module.get_buffer("a.weight_mask").any(1).tolist() == [False, False, False, True, True, True]
    assert module.get_buffer("a.weight_mask") is old, "in place: what is compiled goes on reading it"


def test_a_fork_with_masks_of_its_own_leaves_those_of_its_origin_alone() -> None:
    module = masked()[1]
    twin = module.fork()
    own_masks(twin)
    insert_masks(twin, {"a.weight": row_mask(torch.ones(6, 4), [0])})
    assert twin.get_buffer("a.weight_mask").any(1).tolist() == [False, False, False, True, True, True]
    assert module.get_buffer("a.weight_mask").any(1).tolist() == [True, False, False, True, True, True]
    assert twin.get_parameter("a.weight") is module.get_parameter("a.weight")


def test_a_state_dict_brings_masks_for_parameters_without_one() -> None:
    module, fresh = masked()[1], fxcompress.capture(net(), X)
    accept_masks(fresh)
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh.get_buffer("a.weight_mask"), module.get_buffer("a.weight_mask"))
    assert relative_error(run(fresh, (X,)), run(module, (X,))) <= EXACT
    other = fxcompress.capture(net(), X)
    insert_masks(other, {"b.weight": row_mask(torch.ones(2, 6), [0])})
    module.load_state_dict(fresh.state_dict())
    accept_masks(module)
    module.load_state_dict(other.state_dict())
    assert bool(module.get_buffer("a.weight_mask").all()), "masks that the state lacks keep everything"
    assert module.get_buffer("b.weight_mask").any(1).tolist() == [False, True]


def test_a_dense_state_dict_lacks_the_masks() -> None:
    module = masked()[1]
    accept_masks(module)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "a.weight_mask"'):
        module.load_state_dict(net().state_dict())


def test_every_call_of_a_module_called_twice_reads_through_the_mask() -> None:
    model = ready(Function(lambda m, x: m.a(torch.relu(m.a(x))), a=nn.Linear(4, 4)))
    module = fxcompress.capture(model, X)
    insert_masks(module, {"a.weight": row_mask(torch.ones(4, 4), [0])})
    assert targets(module).count("mul") == 1
    assert targets(module).count("call") == 2


def test_a_tied_weight_is_masked_under_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.relu(self.a(x)))
            return y

    model = ready(Tied())
    first, second = row_mask(torch.ones(4, 4), [0]), row_mask(torch.ones(4, 4), [3])
    module = fxcompress.capture(model, X)
    insert_masks(module, {"a.weight": first, "b.weight": second})
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.get_parameter("a.weight").mul_(first * second)
    assert relative_error(run(module, (X,)), run(expected, (X,))) <= EXACT


def test_a_parameter_read_directly_is_masked() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.scale.sum()

    model = ready(Direct())
    module = fxcompress.capture(model, X)
    insert_masks(module, {"scale": torch.tensor([1.0, 0.0, 1.0, 1.0])})
    with torch.no_grad():
        kept = model.get_parameter("scale") * torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert relative_error(run(module, (X,)), X * kept + kept.sum()) <= EXACT


def test_an_activation_is_masked_for_one_reader_only() -> None:
    model = ready(Function(lambda m, x: (m.b(x), m.c(x)), b=nn.Linear(4, 2), c=nn.Linear(4, 2)))
    module = fxcompress.capture(model, X)
    x, b = (
        next(n for n in module.graph.nodes if n.op == "placeholder"),
        module.graph.find_nodes(op="call_module")[0],
    )
    mask = torch.tensor([True, False, True, True])
    mask_activation(module, x, b, mask)
    module.recompile()
    got, expected = run(module, (X,)), (run(model, (X * mask,))[0], run(model, (X,))[1])
    assert relative_error(got, expected) <= EXACT


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.LayerNorm(6), (5, 6)), (nn.LayerNorm((6, 2)), (5, 6, 2)), (nn.GroupNorm(2, 6), (5, 6, 3))],
)
def test_restricted_statistics_are_those_of_the_kept_channels(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = ready(nn.Sequential(norm))
    x = image(*shape)
    module = fxcompress.capture(model, x)
    kept = torch.tensor([0, 2, 3, 5])  # of each group of three, two
    mask = torch.zeros(6).index_fill_(0, kept, 1.0)
    if isinstance(norm, nn.LayerNorm):
        mask = mask.reshape([6] + [1] * (len(norm.normalized_shape) - 1)).expand(norm.normalized_shape)
    restrict_statistics(module, module.graph.find_nodes(op="call_module")[0], mask)
    module.recompile()
    w, b = norm.weight[kept], norm.bias[kept]  # type: ignore[index]
    with torch.no_grad():
        if isinstance(norm, nn.GroupNorm):
            expected = F.group_norm(x[:, kept], 2, w, b, norm.eps)
        else:
            expected = F.layer_norm(x[:, kept], x[0][kept].shape, w, b, norm.eps)  # type: ignore[arg-type]
    got = run(module, (x,))
    assert relative_error(got[:, kept], expected) <= EXACT
    assert bool((got[:, [1, 4]] == 0).all())


def test_other_calls_cannot_be_restricted() -> None:
    module = fxcompress.capture(net(), X)
    node = module.graph.find_nodes(op="call_module")[0]
    with pytest.raises(PassError, match="statistics of linear cannot be restricted"):
        restrict_statistics(module, node, torch.ones(6))
