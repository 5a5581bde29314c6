"""Prepare a zoo model for an exactness check: randomized statistics, other batch sizes, relative errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from fxcompress.graph.cost import layer_of

PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def load_zoo(folder: Path) -> Any:
    """Import ``zoo.py`` of the given folder; its ``cases(sets)`` yields (name, build, inputs)."""
    spec = importlib.util.spec_from_file_location("zoo_models", folder / "zoo.py")
    if spec is None or spec.loader is None or not (folder / "zoo.py").exists():
        raise FileNotFoundError("no zoo.py in the folder given by --zoo")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomize(model: nn.Module, seed: int) -> None:
    """Give every statistic, bias, affine parameter and layer scale a value that hides no mistake.

    Running means ~ N(0, 0.2), running variances ~ U(0.5, 1.5), biases ~ N(0, 0.2); other vectors (affine
    weights, layer scales) ~ U(0.5, 1.5), one in ten negative; other constant tensors ~ N(0, 0.05).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                _fill_normal(buffer, 0.2, generator)
            elif name.endswith("running_var"):
                _fill_uniform(buffer, 0.5, 1.5, generator)
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
            elif isinstance(_module(captured, layer_of(node)), PRUNABLE):
                found[layer_of(node)] = None
    return tuple(found)


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
    present = {type(module) for module in captured.modules()}
    config: list[dict[str, Any]] = [
        {"op_types": [kind.__name__ for kind in PRUNABLE if kind in present], "sparsity": sparsity}
    ]
    if outputs := output_layers(captured):
        config.append({"op_names": list(outputs), "exclude": True})
    return config


def as_double(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast floating tensors to float64, leave the rest."""
    cast: tuple[Any, ...] = tree_map_only(
        Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs
    )
    return cast


def one_more(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Append to every tensor's batch (axis 0) its first example, mirrored along the last axis."""

    def extend(tensor: Tensor) -> Tensor:
        return (
            torch.cat([tensor, tensor[:1].flip(-1)]) if tensor.ndim > 1 else torch.cat([tensor, tensor[:1]])
        )

    extended: tuple[Any, ...] = tree_map_only(Tensor, extend, inputs)
    return extended


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


def scale_of(outputs: Any) -> float:
    """Return the largest magnitude among floating outputs (a check that they say something)."""
    leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return max((leaf.abs().max().item() for leaf in leaves if leaf.numel()), default=0.0)
