"""Points that a search begins with: evenly sparse, and sparse where a sensitivity analysis allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import fx, nn

from fxcompress.config import known_pruners, parse, select, targets_of_model
from fxcompress.errors import ConfigError, FxcompressError, did_you_mean
from fxcompress.graph.cost import layer_of
from fxcompress.graph.module import CompiledModule
from fxcompress.sensitivity import SensitivityAnalysis

SPARSITIES = (0.25, 0.5, 0.75)
"""At which the sensitivity analysis looks."""
LEAST = 0.3
"""The share of the weights that is asked of it at most: it measures nothing that leaves a quarter or less."""


def layers_to_prune(dense: CompiledModule, pruner: str, layers: Sequence[str] | None = None) -> list[str]:
    """The given layers, or all that the pruner supports but those that make the model's output.

    Raises:
        ConfigError: for a name that is no such layer, or if there is none.
    """
    entry = parse([{"pruner": pruner, "sparsity": 0.5}])
    known = list(select(entry, targets_of_model(dense), known_pruners(), captured=False).pruning)
    wrong = next((name for name in layers or () if name not in known), None)
    if wrong is not None:
        raise ConfigError(
            f"layers: {wrong!r} is no layer that pruner {pruner!r} can prune{did_you_mean(wrong, known)}"
        )
    outputs = _output_layers(dense, set(known))
    found = [name for name in known if name not in outputs] if layers is None else list(layers)
    if not found:
        raise ConfigError(
            f"layers: pruner {pruner!r} can prune no layer but those that make the output; name layers"
        )
    return found


def starting_points(
    dense: CompiledModule,
    evaluate: Callable[[nn.Module], float],
    layers: Sequence[str],
    shares: Sequence[tuple[str, float]],
    file: Path | None,
) -> list[tuple[str, float, dict[str, float]]]:
    """Sparsities to scale until they leave a share of a cost.

    Args:
        dense: the captured model.
        evaluate: its metric, larger is better.
        layers: to be pruned.
        shares: the kinds and shares to aim at.
        file: where the sensitivity analysis keeps what it has measured; ``None``: no analysis.

    Returns:
        Kind, share and sparsity per layer, two for each target.
    """
    points = [(kind, share, dict.fromkeys(layers, 0.5)) for kind, share in shares]
    if file is None:
        return points
    analysis = SensitivityAnalysis(dense, evaluate, layers=layers, sparsities=SPARSITIES, file=file)
    analysis.run()
    for kind, share in shares:
        try:
            entries = analysis.config_list(parameters=max(share, LEAST))
        except FxcompressError:  # nothing it measured is enough: the even point stands alone
            continue
        points.append((kind, share, {entry["op_names"][0]: entry["sparsity"] for entry in entries}))
    return points


def _output_layers(dense: CompiledModule, names: set[str]) -> set[str]:
    """Layers from which the output is reached without another layer in between."""
    found: set[str] = set()
    pending: list[fx.Node] = list(dense.graph.find_nodes(op="output"))
    seen: set[fx.Node] = set()
    while pending:
        for node in pending.pop().all_input_nodes:
            if node in seen:
                continue
            seen.add(node)
            layer = layer_of(node)
            if layer in names:
                found.add(layer)
            else:
                pending.append(node)
    return found
