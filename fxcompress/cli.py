"""The command line: ``fxcompress COMMAND …``.

Exit codes: 0 done, 1 an error (one message on standard error; ``--debug`` shows where), 2 wrong usage, 130
interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fxcompress.commands.bench import add_bench
from fxcompress.commands.compress import add_compress
from fxcompress.commands.demo import add_demo
from fxcompress.commands.explain import add_explain
from fxcompress.commands.export import add_export
from fxcompress.commands.found import nothing_else_on_stdout, show
from fxcompress.commands.inspect import add_inspect
from fxcompress.commands.run import add_run
from fxcompress.commands.search import add_search
from fxcompress.commands.sensitivity import add_sensitivity
from fxcompress.commands.speedup import add_speedup
from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_inspect,
    add_explain,
    add_compress,
    add_speedup,
    add_export,
    add_run,
    add_bench,
    add_sensitivity,
    add_search,
    add_demo,
)

_FLAGS = {
    "example_inputs": ("inputs", "--input 2x3x224x224"),
    "data=": ("data", "--data package.module:batches"),
    "loss_fn=": ("loss", "--loss package.module:loss"),
    "verify=False": ("no_verify", "--no-verify"),
}
"""Argument of a function, as messages name it → option, if the command has it, and how it is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    try:
        with nothing_else_on_stdout(options), warnings.catch_warnings():
            if not options.debug:
                warnings.showwarning = _warn
            found = options.run(options)
        if found is not None:
            show(found, options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nfxcompress: interrupted; files written so far are complete", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the output has enough; nothing is left to flush at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        known = isinstance(error, (FxcompressError, OSError))
        told = str(error) if known else f"{type(error).__name__}: {error}\n{_remedy(error)}"
        told += _flags_for(told, options)
        print(f"fxcompress: error: {_indented(told)}", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``--debug`` is understood before and after the command."""
    from fxcompress import __version__

    parser = argparse.ArgumentParser(
        prog="fxcompress",
        description="Make PyTorch models smaller and faster.",
        epilog="fxcompress COMMAND --help shows a command's options, with examples.",
    )
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


def _remedy(error: Exception) -> str:
    """What to do about an exception that is none of ours."""
    path = error.path if isinstance(error, ImportError) else None
    ours = isinstance(error, ImportError) and str(error.name).startswith("fxcompress")
    if path is not None and not ours and Path(path).is_relative_to(Path.cwd()):
        return f"{path} hides a package of the same name: rename it, or start in another folder."
    return "Unexpected: --debug shows where."


def _flags_for(message: str, options: argparse.Namespace) -> str:
    """What the arguments that a message asks for are called on the command line."""
    flags = [
        flag for argument, (name, flag) in _FLAGS.items() if argument in message and hasattr(options, name)
    ]
    return f"\nOn the command line: {', '.join(flags)}." if flags else ""


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own remarks, a line each; those of other libraries concern developers (``--debug``)."""
    if str(message).startswith("fxcompress: "):
        print(f"fxcompress: note: {str(message).removeprefix('fxcompress: ')}", file=sys.stderr)


def _indented(text: str) -> str:
    """The message without empty lines, all but the first line indented."""
    return "\n  ".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
