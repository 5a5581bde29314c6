"""Models that compute with sizes say so when they are called with others, and only then."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.graph.module import CompiledModule
from tests.helpers import Function, image, ready


class Share(nn.Module):
    """Divides by a size that only Python reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x).relu()).sum(2) / x.shape[2]
        return y


class Around(nn.Module):
    """Calls a compiled model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) + 1
        return y


FOUR, EIGHT = image(2, 3, 4), image(2, 3, 8)
MESSAGE = (
    "fxcompress: input 'x' is n×3×8, that of the example was n×3×4: the model's code computes with sizes, "
    "and its graph has those of the example in their place, so results may be wrong; compile the model with "
    "example_inputs of these sizes"
)


def of(function: Callable[[Tensor], Tensor], x: Tensor) -> CompiledModule:
    return fxcompress.capture(Function(lambda _, x: function(x)), x)


def told(call: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """The warnings of one call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*args, **kwargs)
    assert all(w.category is fxcompress.SizeWarning and w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


@pytest.fixture
def masked() -> CompiledModule:
    return fxcompress.compile(ready(Share()), [{"sparsity": 0.5, "op_names": ["a"]}], FOUR)


def test_other_sizes_are_told_once_with_both_sizes_and_the_remedy(masked: CompiledModule) -> None:
    assert told(masked, FOUR) == []
    assert told(masked, EIGHT) == [MESSAGE]
    assert told(masked, EIGHT) == told(masked, x=EIGHT) == told(masked, EIGHT[:1]) == []
    assert told(masked, x=image(2, 3, 5)) == [MESSAGE.replace("n×3×8", "n×3×5")]


def test_another_batch_is_not_told(masked: CompiledModule) -> None:
    assert told(masked, image(7, 3, 4)) == []


def test_the_graph_holds_the_size_that_the_warning_is_about(masked: CompiledModule) -> None:
    with pytest.warns(fxcompress.SizeWarning):
        wrong = masked(EIGHT)
    model = Share().double()
    model.load_state_dict({k: v for k, v in masked.state_dict().items() if not k.endswith("_mask")})
    keep = masked.get_buffer("a.bias_mask")
    model.a.weight.data *= keep.view(8, 1, 1)
    model.a.bias.data *= keep  # type: ignore[union-attr]
    torch.testing.assert_close(wrong, model(EIGHT) * 8 / 4)


def test_the_warning_survives_speedup_copies_and_files(masked: CompiledModule, tmp_path: Path) -> None:
    small = fxcompress.speedup(masked)
    assert small.get_submodule("a").out_channels == 4
    assert told(small, EIGHT) == [MESSAGE]
    assert told(copy.deepcopy(small), EIGHT) == [MESSAGE]
    assert told(fxcompress.capture(small), EIGHT) == [MESSAGE]
    fxcompress.save(small, tmp_path / "small.pt2")
    loaded = fxcompress.load(tmp_path / "small.pt2")
    assert told(loaded, FOUR) == []
    assert told(loaded, EIGHT) == [MESSAGE]


def grid(x: Tensor) -> Tensor:
    return x.flatten(1).view(x.shape[0], -1) + x.size(0) - x.size(0) + x.dim()


def pooled(x: Tensor) -> Tensor:
    return F.interpolate(F.adaptive_avg_pool1d(x, 2), scale_factor=2).view(x.size(0), 3, 4)


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 2)
    return torch.sub(a, b)


def sections(x: Tensor) -> Tensor:
    a, b = x.split((1, 2), 1)
    return torch.mul(a, b)


@pytest.mark.parametrize("function", [grid, pooled, halves, sections], ids=lambda f: f.__name__)
def test_models_that_read_no_other_size_run_at_all_sizes_without_a_word(
    function: Callable[[Tensor], Tensor],
) -> None:
    captured = of(function, FOUR)
    assert told(captured, EIGHT) == []
    torch.testing.assert_close(captured(EIGHT), function(EIGHT))


def unpacked(x: Tensor) -> Tensor:
    _, _, n = x.shape
    return torch.div(x, n)


READS: dict[str, Callable[[Tensor], Tensor]] = {
    "unpacking": unpacked,
    "index": lambda x: x / x.shape[-1],
    "slice": lambda x: x.new_ones(x.shape[1:]).sum() + x,
    "size": lambda x: x / x.size(2),
    "numel": lambda x: x / x[0].numel(),
    "length": lambda x: x / len(x[0, 0]),
    "iteration": lambda x: sum(column for column in x.transpose(0, 2)) + x.sum(),
    "unbind": lambda x: torch.stack(x.unbind(2)[1:]),
    "pieces": lambda x: torch.stack([piece.sum(2) for piece in x.split(2, 2)]),
    "intermediate": lambda x: x / x.transpose(0, 2).shape[0],
}


@pytest.mark.parametrize("name", READS)
def test_a_read_of_a_fixed_size_is_seen(name: str) -> None:
    captured = of(READS[name], FOUR)
    (message,) = told(captured, EIGHT)
    assert "×3×8, that of the example was" in message
    assert not torch.equal(captured(EIGHT), READS[name](EIGHT))


def test_inputs_in_containers_and_by_keyword_are_told_by_name() -> None:
    def function(pair: dict[str, Tensor], scale: Tensor) -> Tensor:
        return pair["a"] / pair["a"].shape[1] + pair["b"] * scale

    class Nested(nn.Module):
        def forward(self, pair: dict[str, Tensor], scale: Tensor) -> Tensor:
            return function(pair, scale)

    four, eight = ({"a": torch.rand(2, n), "b": torch.rand(2, 1)} for n in (4, 8))
    captured = fxcompress.capture(Nested(), {"pair": four, "scale": torch.rand(2, 1)})
    assert told(captured, pair=four, scale=torch.rand(3, 1)[:2]) == []
    (message,) = told(captured, scale=torch.rand(2, 1), pair=eight)
    assert message.startswith("fxcompress: input 'pair_a' is n×8, that of the example was n×4: ")


def test_nothing_is_in_the_way_of_tracers(masked: CompiledModule) -> None:
    small = fxcompress.speedup(masked).eval()
    want = small(FOUR)
    compiled = torch.compile(Around(small), fullgraph=True, backend="eager", dynamic=True)
    assert told(compiled, FOUR) == []
    torch.testing.assert_close(compiled(FOUR), want + 1)
    free = {"x": {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO}}
    for strict in (False, True):
        program = torch.export.export(small, (FOUR,), dynamic_shapes=free, strict=strict)
        (node,) = [n for n in program.graph.find_nodes(op="placeholder") if n.name == "x"]
        assert not isinstance(node.meta["val"].shape[2], int)  # a comparison would have fixed it
        torch.testing.assert_close(program.module()(FOUR), want)
    assert torch.equal(fx.symbolic_trace(Around(small))(FOUR), want + 1)
    assert torch.equal(torch.func.functional_call(small, dict(small.named_parameters()), (FOUR,)), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert told(small.float(), FOUR.float()) == []
    small.double()
    torch.testing.assert_close(torch.vmap(small)(torch.stack([FOUR, FOUR]))[1], want)


def test_an_onnx_export_at_the_captured_sizes_is_silent(masked: CompiledModule, tmp_path: Path) -> None:
    assert told(fxcompress.export_onnx, masked.float(), tmp_path / "m.onnx", FOUR.float()) == []


def test_with_a_fixed_batch_the_batch_is_a_size_like_others() -> None:
    captured = of(lambda x: x / len(x), torch.rand(4, 3))
    assert not captured.batch_is_dynamic
    (message,) = told(captured, torch.rand(8, 3))
    assert message.startswith("fxcompress: input 'x' is 8×3, that of the example was 4×3")


def test_a_call_that_forward_refuses_is_refused_by_forward(masked: CompiledModule) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        masked()
