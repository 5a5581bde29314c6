"""Prepare a zoo model for an exactness check: randomized statistics, other batch sizes, relative errors."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from fxcompress.config.registry import PRUNABLE
from fxcompress.graph.cost import layer_of

_declared: list[torch.library.Library] = []


def load_zoo(folder: Path) -> Any:
    """Import ``zoo.py`` of the given folder; its ``cases(sets)`` yields (name, build, inputs)."""
    spec = importlib.util.spec_from_file_location("zoo_models", folder / "zoo.py")
    if spec is None or spec.loader is None or not (folder / "zoo.py").exists():
        raise FileNotFoundError("no zoo.py in the folder given by --zoo")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_torchvision() -> Any:
    """torchvision; two operators that its import needs are declared where its own do not load."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        for key in [key for key in sys.modules if key.startswith("torchvision")]:
            del sys.modules[key]
        library = torch.library.Library("torchvision", "DEF")
        _declared.append(library)
        for operator in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


def randomize(model: nn.Module, seed: int, inputs: tuple[Any, ...]) -> None:
    """Give every statistic, bias, affine parameter and layer scale a value that hides no mistake.

    Biases ~ N(0, 0.2); other vectors (affine weights, layer scales) ~ U(0.5, 1.5), one in ten negative; other
    constant tensors ~ N(0, 0.05). Running statistics are those of ``inputs``, disturbed: mean + N(0, 0.2)
    standard deviations, variance * U(0.5, 1.5). Arbitrary ones would let the signal of a deep network fade
    until its output is a constant, which any wrong model reproduces.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == max(parameter.shape, default=1):
                if name.endswith("bias"):
                    _fill_normal(parameter, 0.2, generator)
                else:
                    _fill_uniform(parameter, 0.5, 1.5, generator)
                    parameter.mul_(
                        torch.where(torch.rand(parameter.shape, generator=generator) < 0.1, -1.0, 1.0)
                    )
            elif bool((parameter == parameter.flatten()[0]).all()):
                _fill_normal(parameter, 0.05, generator)
        norms = [
            module for module in model.modules() if isinstance(getattr(module, "running_var", None), Tensor)
        ]
        hooks = [norm.register_forward_pre_hook(partial(_set_statistics, generator)) for norm in norms]
        try:
            model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()


def _set_statistics(generator: torch.Generator, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set running statistics from the input ``(batch, channels, ...)`` that is about to be normalized."""
    mean, var = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return
    channels = inputs[0].transpose(0, 1).flatten(1)
    spread = channels.var(1, correction=0)
    spread = spread.clamp_min(0.25 * inputs[0].var(correction=0).item() + 1e-12)
    mean.copy_(channels.mean(1) + 0.2 * spread.sqrt() * torch.randn(mean.shape, generator=generator))
    var.copy_(spread * (0.5 + torch.rand(var.shape, generator=generator)))


def _fill_normal(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)


def _fill_uniform(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> None:
    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)


def output_layers(captured: fx.GraphModule) -> tuple[str, ...]:
    """Names of the Conv and Linear layers with no parametrised layer between them and the model's output."""
    found: dict[str, None] = {}
    seen: set[fx.Node] = set()
    pending = [node for node in captured.graph.nodes if node.op == "output"]
    while pending:
        for node in pending.pop().all_input_nodes:
            if node in seen or node.op in ("placeholder", "get_attr"):
                continue
            seen.add(node)
            if not _has_parameters(captured, node):
                pending.append(node)
            elif _is_prunable(_module(captured, layer_of(node))):
                found[layer_of(node)] = None
    return tuple(found)


def _is_prunable(module: nn.Module | None) -> bool:
    return not PRUNABLE.isdisjoint(kind.__name__ for kind in type(module).__mro__)


def _has_parameters(captured: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(True for _ in captured.get_submodule(str(node.target)).parameters())
    names = (str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
    return any(isinstance(_attribute(captured, name), nn.Parameter) for name in names)


def _attribute(module: nn.Module, name: str) -> object:
    owner, _, attribute = name.rpartition(".")
    return getattr(module.get_submodule(owner), attribute, None)


def _module(captured: fx.GraphModule, name: str) -> nn.Module | None:
    try:
        return captured.get_submodule(name)
    except AttributeError:
        return None


def config_for(captured: fx.GraphModule, sparsity: float) -> list[dict[str, Any]]:
    """Structured pruning (the default method) of every Conv and Linear except the output layers."""
    config: list[dict[str, Any]] = [{"sparsity": sparsity}]
    if outputs := output_layers(captured):
        config.append({"op_names": list(outputs), "exclude": True})
    return config


def as_double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast floating tensors to float64, leave the rest."""
    cast: tuple[Any, ...] = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs
    )
    return cast


def mirrored(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Flip every tensor along its last axis."""
    flipped: tuple[Any, ...] = tree_map_only(Tensor, lambda t: t.flip(-1) if t.ndim > 1 else t, inputs)
    return flipped


def one_more(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Append to every tensor's batch (axis 0) its first example, mirrored."""
    extended: tuple[Any, ...] = tree_map(_appended, inputs, mirrored(inputs))
    return extended


def _appended(value: Any, other: Any) -> Any:
    return torch.cat([value, other[:1]]) if isinstance(value, Tensor) and value.ndim else value


def relative_error(expected: Any, got: Any) -> float:
    """Return the largest absolute difference over the largest expected magnitude, the worst over all outputs.

    Infinite where structure, shapes or non-floating values differ or anything is not finite.
    """
    old, new = tree_leaves(expected), tree_leaves(got)
    if len(old) != len(new):
        return float("inf")
    return max((_leaf_error(a, b) for a, b in zip(old, new, strict=True)), default=0.0)


def _leaf_error(expected: Any, got: Any) -> float:
    if not isinstance(expected, Tensor):
        return 0.0 if expected == got else float("inf")
    if not isinstance(got, Tensor) or expected.shape != got.shape:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, got) else float("inf")
    scale = expected.abs().max().item() if expected.numel() else 1.0
    difference = (expected - got).abs().max().item() if expected.numel() else 0.0
    if not (scale < float("inf") and difference < float("inf")):
        return float("inf")
    return difference / scale if scale else difference


def sensitivity(outputs: Any) -> float:
    """Return how much the first and the last example's outputs differ, relative to the largest magnitude."""
    leaves = [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point() and y.ndim]
    return max((_leaf_error(y[0], y[-1]) for y in leaves), default=0.0)
