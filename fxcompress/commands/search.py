"""``fxcompress search``: auto-compression from the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.commands.found import Found, add_json
from fxcompress.commands.options import add_place, names, new_command, positive
from fxcompress.errors import ConfigError

if TYPE_CHECKING:
    from fxcompress.auto.interface import AbstractAutoCompressionModule
    from fxcompress.auto.result import SearchResult

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress search task:model --evaluator task:accuracy --budget macs=0.35 --train task:tune
fxcompress search task:model --evaluator task:accuracy --budget latency=2ms --round-to 8 --objective size
fxcompress search task:MyModule --algorithms level,l1,qat --trials 20 --workers 2
"""
_COSTS = "macs, parameters, size, latency, latency_torch"
_PARTS = {
    "--inputs": "example inputs",
    "--train": "function(module) that fine-tunes",
    "--data": "batches to measure and calibrate on",
    "--loss-fn": "function(output, batch)",
}
RANGE = (0.1, 0.9)
"""The sparsities of a space that is made of names of algorithms alone."""


def add_search(commands: Commands) -> None:
    """``fxcompress search``: the best model that fits a budget."""
    text = "search algorithms, sparsities and bit widths for the best model that fits a budget"
    more = "Finished trials are in a study: an interrupted search goes on from there."
    parser = new_command(commands, "search", text, _EXAMPLES, more)
    parser.add_argument("target", metavar="package.module:name", help="a model, a function that makes it, or "
                        "a class of the seeds' interface (AbstractAutoCompressionModule)")  # fmt: skip
    add_place(parser, "--evaluator", "function(module) -> number, larger is better")
    for flag, what in _PARTS.items():
        add_place(parser, flag, what)
    parser.add_argument("--space", type=Path, metavar="FILE", help="search space of a class, as JSON")
    parser.add_argument("--algorithms", type=names, default=("l1", "fpgm"), metavar="A,B,…",
                        help="pruners and quantizers to choose from (default: l1,fpgm)")  # fmt: skip
    parser.add_argument(
        "--bits", type=_numbers, default=(8,), metavar="B,B,…", help="bit widths (default: 8)"
    )
    parser.add_argument("--round-to", type=positive, metavar="N", help="keep multiples of N channels")
    parser.add_argument("--budget", type=_limit, action="append", default=[], metavar="COST=LIMIT",
                        help=f"such as macs=0.35 or latency=2ms; costs: {_COSTS}")  # fmt: skip
    parser.add_argument("--objective", action="append", default=[], metavar="COST",
                        help="minimize it besides: the Pareto front comes out")  # fmt: skip
    _add_options(parser)
    parser.set_defaults(run=run_search)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Those that ``fxcompress.auto.Options`` checks."""
    parser.add_argument("--minimize", action="store_true", help="the metric of a class")
    parser.add_argument("--trials", type=positive, default=20, help="in all, earlier ones too (default: 20)")
    parser.add_argument("--workers", type=positive, default=1, help="trials at a time (default: 1)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="of a trial")
    parser.add_argument("--out", type=Path, default=Path("search"), help="folder (default: ./search)")
    parser.add_argument("--storage", metavar="URL", help="database or journal file of the study (default: "
                        "an SQLite file in the folder)")  # fmt: skip
    parser.add_argument("--name", default="search", help="of the study (default: search)")
    parser.add_argument("--sampler", default="tpe", help="of Optuna (default: tpe)")
    parser.add_argument("--pruner", help="of Optuna (default: none)")
    parser.add_argument("--seed", type=int, default=0, help="of sampler and trials (default: 0)")
    parser.add_argument("--port", type=int, help="serve optuna-dashboard there meanwhile")
    add_json(parser)


def run_search(options: argparse.Namespace) -> Found:
    """Run it; the trials, and where the best model is."""
    from fxcompress.auto.interface import AbstractAutoCompressionModule
    from fxcompress.auto.table import trial_table
    from fxcompress.places import resolve

    target = resolve(options.target)
    if isinstance(target, type) and issubclass(target, AbstractAutoCompressionModule):
        result = _of_class(target, options)
    else:
        result = _of_model(options)
    best, folder = result.best, options.out
    change = best.metric - result.dense["metric"] if best.metric is not None else 0.0
    shares = f"{best.shares['macs']:.1%} of the MACs, {best.shares['size']:.1%} of the bytes"
    told = (
        f"\nbest: trial {best.number}, metric {best.metric:.4f} ({change:+.4f}), {shares}\n"
        f"{folder / 'best'}: small.pt2, small.onnx, config.json\n"
        f"{folder}: report.html, trials.csv, trials.json"
    )
    return Found(result.facts(), (trial_table(result), told))


def _of_model(options: argparse.Namespace) -> SearchResult:
    if options.evaluator is None:
        raise ConfigError("--evaluator: expected the place of a function such as task:accuracy, got none")
    if options.space is not None or options.minimize:
        raise ConfigError("--space and --minimize are for classes (AbstractAutoCompressionModule) only")
    from fxcompress.auto.search import search

    parts = {name: getattr(options, name) for name in (p[2:].replace("-", "_") for p in _PARTS)}
    names = ("trials", "algorithms", "bits", "round_to")
    chosen = {name: getattr(options, name) for name in names} | parts | _shared(options)
    return search(options.target, options.evaluator, budget=dict(options.budget), **chosen)


def _of_class(module: type[AbstractAutoCompressionModule], options: argparse.Namespace) -> SearchResult:
    from fxcompress.auto.experiment import AutoCompressionExperiment
    from fxcompress.auto.space import read_space

    experiment = AutoCompressionExperiment(module)
    config = experiment.config
    config.max_trial_number = options.trials
    config.search_space = _space(options) if options.space is None else read_space(options.space)
    config.budget = dict(options.budget)
    config.options = _shared(options) | {"direction": "minimize" if options.minimize else "maximize"}
    return experiment.run()


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    names = ("workers", "time_limit", "storage", "name", "sampler", "pruner", "seed", "port")
    given = {name: getattr(options, name) for name in names}
    return given | {"folder": options.out, "objectives": tuple(options.objective)}


def _space(options: argparse.Namespace) -> dict[str, Any]:
    """One sparsity for all layers, or bit widths, for each algorithm."""
    from fxcompress.auto.algorithms import algorithm
    from fxcompress.auto.space import AutoCompressionSearchSpaceGenerator

    generator = AutoCompressionSearchSpaceGenerator()
    for name in options.algorithms:
        entry: dict[str, Any] = {"op_types": ["default"]}
        if algorithm(name).kind == "pruner":
            entry["sparsity"] = {"_type": "uniform", "_value": list(RANGE)}
        else:
            entry["quant_bits"] = {"_type": "choice", "_value": list(options.bits)}
        generator.add_config(name, [entry])
    return generator.dumps()


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 4,8, got {text!r}") from error


def _limit(text: str) -> tuple[str, str]:
    kind, separator, limit = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"expected COST=LIMIT such as macs=0.35, got {text!r}")
    return kind, limit
