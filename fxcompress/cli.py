"""The command line: everything that needs no training code of one's own.

A subcommand is one function that adds its parser and names what to run; ``COMMANDS`` lists them. Exit codes:
0 done, 1 an error (one line on stderr; ``--debug`` shows where), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fxcompress.commands.search import add_search
from fxcompress.demo import EPOCHS, DemoOptions, run_demo
from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_demo(commands: Commands) -> None:
    """``fxcompress demo``: the main job on scikit-learn's digits."""
    text = "train a small residual convnet on digits, remove half of its channels, compare before and after"
    parser = commands.add_parser("demo", help=text, description=f"{text.capitalize()}.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the models (default: ./demo)"
    )
    parser.add_argument("--epochs", type=_positive, default=EPOCHS, help=f"of training (default: {EPOCHS})")
    parser.add_argument(
        "--sparsity", type=float, default=0.5, help="fraction of channels to remove (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, split and order (default: 0)")
    parser.add_argument(
        "--quick", action="store_true", help="two epochs on few images: a test of the machinery"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("out", "epochs", "sparsity", "seed", "quick", "json")}
    run_demo(DemoOptions(**given), Console(highlight=False))


COMMANDS: tuple[Callable[[Commands], None], ...] = (add_demo, add_search)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\nfxcompress: interrupted; files written so far are complete", file=sys.stderr)
        return 130
    except (FxcompressError, OSError) as error:
        if options.debug:
            raise
        print(f"fxcompress: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``--debug`` is understood before and after the command."""
    from fxcompress import __version__

    parser = argparse.ArgumentParser(prog="fxcompress", description="Make PyTorch models smaller and faster.")
    parser.add_argument("--version", action="version", version=f"fxcompress {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in COMMANDS:
        add(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number
