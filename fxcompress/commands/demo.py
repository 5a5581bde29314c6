"""``fxcompress demo``: the main job on scikit-learn's digits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fxcompress.commands.found import Found
from fxcompress.commands.options import new_command, positive
from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXAMPLES = """
fxcompress demo
fxcompress demo --sparsity 0.7 --out models
fxcompress demo --quick --json figures.json
"""


def add_demo(commands: Commands) -> None:
    """Train on digits, compress, compare."""
    text = "train a small residual convnet on digits, remove half of its channels, compare before and after"
    parser = new_command(commands, "demo", text, _EXAMPLES)
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the models (default: ./demo)"
    )
    parser.add_argument("--epochs", type=positive, default=12, help="of training (default: 12)")
    parser.add_argument(
        "--sparsity", type=float, default=0.5, help="fraction of channels to remove (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, split and order (default: 0)")
    parser.add_argument(
        "--quick", action="store_true", help="two epochs on few images: a test of the machinery"
    )
    parser.add_argument(
        "--json", type=Path, nargs="?", const=True, metavar="FILE",
        help="print the figures as one JSON object instead of tables, or write them to FILE too",
    )  # fmt: skip
    parser.set_defaults(run=run_demo)


def run_demo(options: argparse.Namespace) -> Found:
    """Run the whole job."""
    file = options.json if isinstance(options.json, Path) else None
    if file is not None and not file.parent.is_dir():
        raise FxcompressError(f"--json {file}: the folder {file.parent} does not exist; create it")

    from rich.console import Console

    from fxcompress import demo

    given = {name: getattr(options, name) for name in ("out", "epochs", "sparsity", "seed", "quick")}
    chosen = demo.DemoOptions(**given, json=file)
    result = demo.run_demo(chosen, Console(highlight=False))
    return Found(result.facts(), (result.table(), *demo.closing_lines(chosen)))
