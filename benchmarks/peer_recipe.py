"""Torch-Pruning as its documentation uses it: the peer of ``zoo_peer.py``.

Half of the channels by group L1 magnitude with ``BasePruner``, the output layers ignored. What its README and
examples (``examples/transformers``, ``examples/LLMs``, ``examples/torchvision_models``) have a user do for
attention is done for every module that is built that way, whatever the model:

head dims    ``num_heads`` of the query, key and value projections, the same dimensions of every head removed
whole heads  ``prune_num_heads=True, prune_head_dims=False``, what its examples do for BERT and for LLMs
no heads     nothing said about attention

and afterwards the attributes that a forward reads (``num_heads``, ``head_dim``, ``hidden_dim``, …) are those
of the new widths. A model without attention has one recipe.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

HEAD_DIMS, WHOLE_HEADS, NO_HEADS, PLAIN = "head dims", "whole heads", "no heads", "plain"
FUSED = ("qkv", "qkv_proj", "query_key_value")
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_WIDTHS = ("head_dim", "attention_head_size", "dim_head")
WIDTHS = ("attn_dim", "all_head_size", "all_head_dim", "hidden_size", "embed_dim", "inner_dim")


@dataclass(frozen=True)
class Attention:
    """A module with query, key and value projections: three layers, or one that holds all three."""

    module: nn.Module
    projections: tuple[nn.Linear, ...]
    heads: int
    key_value_heads: int

    @property
    def width(self) -> int:
        """Channels of the queries, all heads together."""
        return self.projections[0].out_features // (3 if len(self.projections) == 1 else 1)


@dataclass
class Hints:
    """What a user tells Torch-Pruning about a model."""

    attention: list[Attention] = field(default_factory=list)
    groups: dict[nn.Module, int] = field(default_factory=dict)

    @property
    def recipes(self) -> tuple[str, ...]:
        """The recipes that differ for this model."""
        if self.attention:
            return (HEAD_DIMS, WHOLE_HEADS, NO_HEADS)
        return (HEAD_DIMS, NO_HEADS) if self.groups else (PLAIN,)

    def num_heads(self) -> dict[nn.Module, int]:
        """Its argument of that name."""
        return {
            layer: found.heads if index == 0 else found.key_value_heads
            for found in self.attention
            for index, layer in enumerate(found.projections)
        }


def hints_of(model: nn.Module) -> Hints:
    """Find attention by the names that its modules' children and attributes have."""
    hints = Hints()
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            hints.groups[module] = module.num_heads
        elif found := _attention(module):
            hints.attention.append(found)
        if isinstance(gate := getattr(module, "gate_up_proj", None), nn.Linear):
            hints.groups[gate] = 2
    return hints


def _attention(module: nn.Module) -> Attention | None:
    heads = _number(module, HEADS, "num_attention_heads")
    candidates = [*((name,) for name in FUSED), *SEPARATE]
    for names in candidates:
        layers = tuple(layer for name in names if isinstance(layer := getattr(module, name, None), nn.Linear))
        if heads and len(layers) == len(names):
            return Attention(
                module, layers, heads, _number(module, KEY_VALUE_HEADS, "num_key_value_heads") or heads
            )
    return None


def _number(module: nn.Module, names: Sequence[str], in_config: str) -> int | None:
    """The first attribute of such a name that is an integer, or what the module's config says."""
    values = [getattr(module, name, None) for name in names]
    values.append(getattr(getattr(module, "config", None), in_config, None))
    return next((value for value in values if isinstance(value, int) and not isinstance(value, bool)), None)


def pruner_of(
    model: nn.Module, example: tuple[Any, ...], outputs: Sequence[str], recipe: str, sparsity: float
) -> tuple[Any, Hints]:
    """Build the dependency graph of ``model`` with output layers ``outputs``; raises what that raises."""
    pruning: Any = importlib.import_module("torch_pruning")
    for parameter in model.parameters():
        parameter.requires_grad_()
    hints = hints_of(model)
    whole = recipe == WHOLE_HEADS
    told = recipe in (HEAD_DIMS, WHOLE_HEADS)
    pruner = pruning.pruner.BasePruner(
        model,
        example,
        importance=pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=sparsity,
        ignored_layers=[model.get_submodule(name) for name in outputs],
        num_heads=hints.num_heads() if told else {},
        in_channel_groups={},  # its defaults are dicts that all pruners of a process share
        out_channel_groups=dict(hints.groups) if told else {},
        prune_num_heads=whole,
        prune_head_dims=not whole,
        head_pruning_ratio=sparsity if whole else 0.0,
    )
    return pruner, hints


def step(model: nn.Module, pruner: Any, hints: Hints) -> None:
    """Remove the channels, then bring attributes that forwards read up to date."""
    widths = [found.width for found in hints.attention]
    pruner.step()
    left: dict[nn.Module, int] = pruner.num_heads
    for found, old_width in zip(hints.attention, widths, strict=True):
        heads = left.get(found.projections[0], found.heads)
        shared = left.get(found.projections[-1], found.key_value_heads)
        new: dict[str, int] = dict.fromkeys(HEADS, heads) | dict.fromkeys(KEY_VALUE_HEADS, shared)
        new |= dict.fromkeys(HEAD_WIDTHS, found.width // heads)
        new |= {name: found.width for name in WIDTHS if getattr(found.module, name, None) == old_width}
        new |= {"num_key_value_groups": heads // shared}
        for name in _integers(found.module, new):
            setattr(found.module, name, new[name])
    for module in model.modules():
        projection = getattr(module, "conv_proj", None)  # torchvision's ViT, as in its example
        if isinstance(projection, nn.Conv2d) and isinstance(getattr(module, "hidden_dim", None), int):
            module.hidden_dim = projection.out_channels  # type: ignore[assignment]


def _integers(module: nn.Module, names: dict[str, int]) -> Iterator[str]:
    return (name for name in names if isinstance(getattr(module, name, None), int))
