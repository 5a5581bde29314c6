"""Heads, head features and feed-forward layers of attention, however it is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxcompress
from fxcompress.errors import ConfigError
from fxcompress.graph.module import CompiledModule
from fxcompress.pruning import L1FilterPruner, LevelPruner, get_masks
from tests.helpers import Function, check_exact, image, ready, weight_shape

X = image(3, 5, 12)


def separate(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(x.shape[0], -1, 4, 6).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def explicit(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).view(x.shape[0], -1, 4, 6).transpose(1, 2) for layer in (m.q, m.k, m.v))
    y = ((q @ k.transpose(-2, -1)) * 6**-0.5).softmax(-1) @ v
    return m.out(y.transpose(1, 2).reshape(x.shape[0], -1, 24))  # type: ignore[no-any-return]


def merged_with_the_batch(m: Any, x: Tensor) -> Tensor:
    views = (layer(x).view(x.shape[0], -1, 4, 6).transpose(1, 2) for layer in (m.q, m.k, m.v))
    q, k, v = (view.reshape(x.shape[0] * 4, -1, 6) for view in views)
    y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
    return m.out(y.view(x.shape[0], 4, -1, 6).transpose(1, 2).reshape(x.shape[0], -1, 24))  # type: ignore[no-any-return]


def einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (4, 6)) for layer in (m.q, m.k, m.v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return m.out(torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2))  # type: ignore[no-any-return]


def layers() -> dict[str, nn.Linear]:
    return {name: nn.Linear(12, 24) for name in "qkv"} | {"out": nn.Linear(24, 5)}


WAYS = (separate, explicit, merged_with_the_batch, einsum)


def pruned(model: nn.Module, granularity: str, names: list[str], sparsity: float = 0.5) -> CompiledModule:
    entry = {"sparsity": sparsity, "granularity": granularity, "op_names": names}
    return fxcompress.compile(ready(model), [entry], X)


def kept_rows(module: CompiledModule, layer: str) -> list[int]:
    return get_masks(module)[layer]["weight"].any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("way", WAYS)
def test_whole_heads_go_from_queries_keys_and_values(way: Callable[[Any, Tensor], Tensor]) -> None:
    module = pruned(Function(way, **layers()), "head", ["q", "k", "v"])
    rows = kept_rows(module, "q")
    assert kept_rows(module, "k") == kept_rows(module, "v") == rows
    assert len(rows) == 12
    assert all(6 * (row // 6) + i in rows for row in rows for i in range(6))
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    assert weight_shape(small, "v") == (12, 12)
    assert weight_shape(small, "out") == (5, 12)


@pytest.mark.parametrize("way", WAYS)
def test_features_go_from_every_head(way: Callable[[Any, Tensor], Tensor]) -> None:
    module = pruned(Function(way, **layers()), "head_dim", ["q", "k", "v"])
    for layer in "qkv":
        rows = kept_rows(module, layer)
        assert [sum(row // 6 == head for row in rows) for head in range(4)] == [3, 3, 3, 3]
    assert kept_rows(module, "q") == kept_rows(module, "k")
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    assert weight_shape(small, "q") == (12, 12)


def test_the_heads_of_a_fused_projection_are_those_of_all_its_parts() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(x.shape[0], -1, 3, 4, 6).permute(2, 0, 3, 1, 4)
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    model = Function(body, qkv=nn.Linear(12, 72), out=nn.Linear(24, 5))
    module = pruned(model, "head", ["qkv"], 0.25)
    rows = kept_rows(module, "qkv")
    heads = {row % 24 // 6 for row in rows}
    assert len(heads) == 3
    assert rows == [row for row in range(72) if row % 24 // 6 in heads]
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    assert weight_shape(small, "qkv") == (54, 12)


@pytest.mark.parametrize("repeats", [True, False])
def test_query_heads_go_with_the_key_head_they_share(repeats: bool) -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        q = m.q(x).view(x.shape[0], -1, 4, 6).transpose(1, 2)
        k, v = (layer(x).view(x.shape[0], -1, 2, 6).transpose(1, 2) for layer in (m.k, m.v))
        if repeats:
            k, v = (y[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=not repeats)
        return m.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    model = Function(
        body, q=nn.Linear(12, 24), k=nn.Linear(12, 12), v=nn.Linear(12, 12), out=nn.Linear(24, 5)
    )
    module = pruned(model, "head", ["q", "k", "v"])
    (head,) = {row // 6 for row in kept_rows(module, "k")}
    assert {row // 12 for row in kept_rows(module, "q")} == {head}
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    assert weight_shape(small, "q") == (12, 12)
    assert weight_shape(small, "k") == (6, 12)


@pytest.mark.parametrize(
    ("granularity", "names"), [("head", ["*.self_attn"]), ("out_channel", ["encoder.*", "up"])]
)
def test_multihead_attention_of_torch_is_a_layer(granularity: str, names: list[str]) -> None:
    layer = nn.TransformerEncoderLayer(24, 4, 32, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Function(
        lambda m, x: m.down(m.encoder(m.up(x))), encoder=encoder, up=nn.Linear(12, 24), down=nn.Linear(24, 5)
    )
    module = pruned(model, granularity, names)
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    width = 24 if granularity == "head" else 12
    attention = small.get_submodule("encoder.layers.1.self_attn")
    assert tuple(attention.get_parameter("in_proj_weight").shape) == (36, width)
    assert tuple(attention.get_parameter("out_proj.weight").shape) == (width, 12)


def test_separate_projections_of_multihead_attention_are_layers_of_their_own() -> None:
    model = Function(
        lambda m, x: m.down(m.attention(m.up(x), x, x, need_weights=False)[0]),
        attention=nn.MultiheadAttention(24, 4, kdim=12, vdim=12, batch_first=True),
        up=nn.Linear(12, 24), down=nn.Linear(24, 5),
    )  # fmt: skip
    entry = {"sparsity": 0.5, "granularity": "head", "op_names": ["attention"]}
    pruner = L1FilterPruner(ready(model), [entry], example_inputs=X)
    module = pruner.compress()
    masks = get_masks(module)["attention"]
    assert {float(masks[f"{name}_proj_weight"].mean()) for name in "qkv"} == {0.5}
    lines = [str(cell) for cell in pruner.summary().columns[0].cells]
    assert lines == [f"attention.{name}_proj_weight" for name in "qkv"]
    check_exact(fxcompress.speedup(module, X), module, X)


def test_other_layers_are_pruned_as_ever() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        return m.down(F.gelu(m.up(x + separate(m, x))))  # type: ignore[no-any-return]

    model = Function(
        body, **layers() | {"out": nn.Linear(24, 12), "up": nn.Linear(12, 30), "down": nn.Linear(30, 5)}
    )
    config = [
        {"sparsity": 0.5, "granularity": "head", "op_names": ["q", "k", "v"]},
        {"sparsity": 0.3, "op_names": ["up"]},
    ]
    module = fxcompress.compile(ready(model), config, X)
    assert len(kept_rows(module, "up")) == 21
    small = fxcompress.speedup(module, X)
    check_exact(small, module, X)
    assert weight_shape(small, "down") == (5, 21)


def test_a_layer_without_attention_has_no_heads() -> None:
    model = Function(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(12, 8), b=nn.Linear(8, 3))
    with pytest.raises(ConfigError, match=r"a: granularity 'head': .* found no attention behind it; give it"):
        pruned(model, "head", ["a"])


def test_heads_are_coupled() -> None:
    entry = {"sparsity": 0.5, "granularity": "head", "op_names": ["q"]}
    model = ready(Function(separate, **layers()))
    with pytest.raises(ConfigError, match=r"q: granularity 'head': expected dependency_aware=True"):
        fxcompress.compile(model, [entry], X, dependency_aware=False)
    with pytest.raises(ConfigError, match=r"2:4"):
        LevelPruner(model, [{**entry, "granularity": "heads"}])
