"""``fxcompress sensitivity``: what pruning one layer at a time costs, and a config list that costs least."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.commands.configs import KEY
from fxcompress.commands.found import Found, add_json, row, table
from fxcompress.commands.options import (
    add_model,
    add_place,
    check_model,
    check_target,
    fractions,
    names,
    new_command,
)
from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress sensitivity models.digits:make --weights best.pt --evaluator task:accuracy
fxcompress sensitivity small.pt2 --evaluator task:accuracy --sparsities 0.25,0.5,0.75 --plot sensitivity.png
fxcompress sensitivity small.pt2 --evaluator task:accuracy --parameters 0.5 --config prune.json
"""


def add_sensitivity(commands: Commands) -> None:
    """Sensitivity of every layer."""
    text = "measure what masking each layer alone does to a metric"
    more = "What has been measured is in a CSV file: an interrupted run goes on from there."
    parser = new_command(commands, "sensitivity", text, _EXAMPLES, more)
    add_model(parser)
    add_place(parser, "--evaluator", "function(module) -> number, larger is better", required=True)
    parser.add_argument(
        "--layers", type=names, metavar="A,B,…", help="(default: all that the pruner supports)"
    )
    parser.add_argument("--sparsities", type=fractions, metavar="S,S,…", help="(default: 0.1 to 0.9)")
    parser.add_argument("--pruner", default="l1", metavar="NAME", help="criterion (default: l1)")
    parser.add_argument(
        "--out", type=Path, default=Path("sensitivity.csv"), metavar="FILE",
        help="the CSV file, read first if it exists (default: sensitivity.csv)",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw metric over sparsity (.png, .svg, .pdf)"
    )
    parser.add_argument(
        "--parameters",
        type=float,
        metavar="SHARE",
        help="propose a config list that leaves this share of the weights",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="write the proposed config list there, as JSON"
    )
    add_json(parser)
    parser.set_defaults(run=run_sensitivity)


def run_sensitivity(options: argparse.Namespace) -> Found:
    """Measure what is missing; plot, and propose."""
    check_model(options)
    if options.config is not None and options.parameters is None:
        raise FxcompressError(
            "--config: there is no config list to write without --parameters; add --parameters 0.5"
        )
    for path in (options.out, options.plot, options.config):
        if path is not None:
            check_target(path)

    from fxcompress.commands.models import inputs_of, model_of
    from fxcompress.export.files import replacing
    from fxcompress.places import function
    from fxcompress.sensitivity import SPARSITIES, SensitivityAnalysis

    analysis = SensitivityAnalysis(
        model_of(options),
        function(options.evaluator),
        inputs_of(options.inputs),
        layers=options.layers,
        sparsities=options.sparsities or SPARSITIES,
        pruner=options.pruner,
        file=options.out,
    )
    results = analysis.run()
    if options.plot is not None:
        analysis.plot(options.plot)
    proposed = None if options.parameters is None else analysis.config_list(options.parameters)
    if options.config is not None:
        with replacing(options.config) as temporary:
            temporary.write_text(json.dumps({KEY: proposed}, indent=1) + "\n", encoding="utf-8")
    columns = sorted({sparsity for curve in results.values() for sparsity in curve})
    made = table("metric with one layer masked", "layer", *(f"{c:g}" for c in columns))
    for layer, curve in results.items():
        row(made, layer or "(model)", *(f"{curve[c]:.4g}" if c in curve else None for c in columns))
    facts = {
        "model": options.model,
        "file": str(options.out),
        "results": {
            layer: {f"{s:g}": metric for s, metric in curve.items()} for layer, curve in results.items()
        },
        KEY: proposed,
    }
    lines = [
        f"\nwritten: {options.out}",
        *([json.dumps({KEY: proposed}, indent=1)] if proposed is not None else []),
    ]
    return Found(facts, (made, *lines))
