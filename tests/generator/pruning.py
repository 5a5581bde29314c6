"""What to prune of a network: random config lists and random external masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from tests.generator.network import Network

T = TypeVar("T")
KNOBS = 24
LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
SPARSITIES = (0.5, 0.3, 0.75, 0.9, 0.5, 0.25, 0.6, 0.0)


@dataclass(frozen=True)
class Pruning:
    """One way to prune a network: `config` is a config list, or else `masks` is a plan for `make_masks`.

    Exactly one of the two is non-empty; both are empty where the network has no layer to prune.
    """

    config: list[dict[str, Any]]
    masks: dict[str, dict[str, Any]]
    dependency_aware: bool

    @property
    def uniform(self) -> float | None:
        """The sparsity where one structured entry gives every layer the same, else None."""
        if len(self.config) != 1 or not self.dependency_aware:
            return None
        entry = self.config[0]
        plain = set(entry) <= {"op_types", "sparsity", "pruner"} and entry.get("pruner") != "level"
        return (
            float(entry["sparsity"]) if plain and entry.get("op_types", ["default"]) == ["default"] else None
        )


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that pruners support, by qualified name."""
    return {name: module for name, module in model.named_modules() if type(module) in LAYERS}


class _Picker:
    def __init__(self, knobs: Sequence[int]) -> None:
        self._knobs = list(knobs)

    def pick(self, options: Sequence[T]) -> T:
        return options[(self._knobs.pop(0) if self._knobs else 0) % len(options)]

    def some(self, items: Sequence[T]) -> list[T]:
        """One or two of `items`, sometimes all."""
        first, second = self.pick(items), self.pick(items)
        return self.pick(([first], list(dict.fromkeys([first, second])), list(items)))


def random_pruning(network: Network, knobs: Sequence[int]) -> Pruning:
    """The pruning that `knobs` mean for `network`; any integers are valid, zeros are the plainest."""
    picker = _Picker(knobs)
    layers = prunable(network.build())
    if not layers:
        return Pruning([], {}, True)
    if picker.pick(("config", "config", "masks", "config", "masks")) == "masks":
        return Pruning([], {name: _plan(picker, layers[name]) for name in picker.some(list(layers))}, True)
    dependency_aware = picker.pick((True, False))
    config = [_entry(picker, layers, first=True)]
    config += [_entry(picker, layers, first=False) for _ in range(picker.pick((0, 0, 1, 2)))]
    excluded = picker.pick(list(layers))
    if len(layers) > 1 and picker.pick((False, False, False, True)):
        config = [{key: value for key, value in config[0].items() if key != "op_names"}]
        config.append({"op_names": [excluded], "exclude": True})
        config[0]["op_types"] = ["default"]
    return Pruning(config, {}, dependency_aware)


def _entry(picker: _Picker, layers: dict[str, nn.Module], *, first: bool) -> dict[str, Any]:
    scope = picker.pick(("default", "default", "types", "names") if first else ("names", "types", "exclude"))
    entry: dict[str, Any] = {"op_types": ["default"]}
    types = list(dict.fromkeys(type(layer).__name__ for layer in layers.values()))
    if scope == "types":
        entry = {"op_types": picker.some(types)}
    elif scope == "names":
        entry = {"op_names": picker.some(list(layers))}
    elif scope == "exclude" and len(layers) > 1:
        entry["exclude_op_names"] = [picker.pick(list(layers))]
    entry["sparsity"] = picker.pick(SPARSITIES)
    pruner = picker.pick((None, "l1", "l2", "fpgm", "level"))
    if pruner:
        entry["pruner"] = pruner
    return entry


def _plan(picker: _Picker, layer: nn.Module) -> dict[str, Any]:
    """Whole rows, whole columns, or single weights; the bias follows the rows, stays, or is masked anyhow."""
    weight = layer.get_parameter("weight")
    rows, columns = weight.shape[:2]
    kind = picker.pick(("rows", "rows", "columns", "both", "scatter", "rows"))
    plan: dict[str, Any] = {}
    step, start = picker.pick((2, 3, 1)), picker.pick((0, 1))
    if kind in ("rows", "both"):
        plan["rows"] = list(range(rows))[start::step]
    if kind in ("columns", "both"):
        plan["columns"] = list(range(columns))[start::step]
    if kind == "scatter":
        plan |= {"scatter": picker.pick((0.5, 0.9)), "seed": picker.pick(range(5))}
    bias = picker.pick(("follows", "follows", "stays", "some"))
    if layer.bias is not None and bias != "stays":
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        length = len(layer.get_parameter("bias"))
        follows = plan.get("rows", []) if not transposed else []
        plan["bias"] = follows if bias == "follows" else list(range(length))[::2]
    return plan
