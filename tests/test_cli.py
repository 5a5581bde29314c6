"""The command line as a whole: help, exit codes, debugging; what each command does is in ``commands``."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import fxcompress
from fxcompress import cli
from fxcompress.commands.found import Found
from tests.commands.executable import FXCOMPRESS, TIMEOUT, environment, run, usage


def commands() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser, by name."""
    parser = cli.make_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


@pytest.mark.parametrize("name", commands())
def test_help_shows_examples_that_parse(name: str) -> None:
    text = commands()[name].format_help()
    examples = [line.strip()[2:] for line in text.splitlines() if line.startswith("  $ ")]
    assert examples
    for example in examples:
        program, *arguments = shlex.split(example)
        assert program == "fxcompress"
        assert arguments[0] == name
        cli.make_parser().parse_args(arguments)


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys; from fxcompress.cli import make_parser; make_parser().format_help(); "
    code += "print([name for name in ('torch', 'numpy', 'onnx') if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stdout == "[]\n", done.stderr


def test_the_executable_lists_the_commands(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"\n    {name}" in done.stdout for name in commands())


def test_the_version_is_printed_by_the_module_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fxcompress", "--version"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.stdout == f"fxcompress {fxcompress.__version__}\n"


def test_wrong_usage_exits_with_two(tmp_path: Path) -> None:
    done = run("inspct", cwd=tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'inspct'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["demo", "--speed"], "unrecognized arguments: --speed"),
        (["inspect"], "required: MODEL"),
        (["inspect", "task:net", "--input", "2,3"], "argument --input: expected a shape such as 1x3x224x224"),
        (["explain", "task:net"], "required: --config"),
        (["speedup", "task:net"], "required: --out"),
        (["speedup", "task:net", "--out", "x", "--round-to", "0"], "a whole number of at least 1, got '0'"),
        (["export", "task:net", "--out", "x", "--opset", "new"], "invalid int value: 'new'"),
        (["run"], "required: FILE"),
        (["bench", "a.onnx", "--rounds", "many"], "a whole number of at least 1, got 'many'"),
        (["sensitivity", "task:net"], "required: --evaluator"),
        (["sensitivity", "a:b", "--evaluator", "a:b", "--sparsities", "a"], "numbers such as 0.25,0.5"),
        (["compress", "task:net", "--config", "x", "--rounds", "-1"], "a whole number of at least 0"),
    ],
)
def test_wrong_usage_names_the_argument(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in usage(capsys, *arguments)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a function the only command, called ``do``."""

    def set_command(function: Any) -> None:
        def add(commands: Any) -> None:
            parser = commands.add_parser("do")
            parser.add_argument("--json", action="store_true")
            parser.set_defaults(run=function)

        monkeypatch.setattr(cli, "COMMANDS", (add,))

    return set_command


def fail(options: argparse.Namespace) -> Found:
    """Fail in a way nobody foresaw."""
    raise KeyError("lost")


@pytest.mark.parametrize("arguments", [["--debug", "do"], ["do", "--debug"]])
def test_debug_shows_the_traceback(command: Any, arguments: list[str]) -> None:
    command(fail)
    with pytest.raises(KeyError):
        cli.main(arguments)


def test_what_nobody_foresaw_is_one_message_too(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    command(fail)
    assert cli.main(["do"]) == 1
    assert capsys.readouterr().err == (
        "fxcompress: error: KeyError: 'lost'\n  Unexpected: --debug shows where.\n"
    )


def test_an_interrupt_exits_with_130(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(options: argparse.Namespace) -> Found:
        raise KeyboardInterrupt

    command(interrupt)
    assert cli.main(["do"]) == 130
    assert capsys.readouterr().err == "\nfxcompress: interrupted; files written so far are complete\n"


def test_json_is_one_object_whatever_is_printed_besides(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def talk(options: argparse.Namespace) -> Found:
        print("step 1 of 3")
        return Found({"loss": float("nan"), "rows": (1, [float("inf"), 2.5])}, ("a table",))

    command(talk)
    assert cli.main(["do", "--json"]) == 0
    told = capsys.readouterr()
    assert told.out == '{"loss": null, "rows": [1, [null, 2.5]]}\n'
    assert told.err == "step 1 of 3\n"
    assert cli.main(["do"]) == 0
    assert capsys.readouterr().out == "step 1 of 3\na table\n"


def test_our_own_warnings_are_notes_and_those_of_others_are_left_out(
    command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(options: argparse.Namespace) -> Found:
        warnings.simplefilter("always")
        warnings.warn("fxcompress: conv1 stays", stacklevel=2)
        warnings.warn("deprecated in torch 3", DeprecationWarning, stacklevel=2)
        return Found({}, ())

    command(warn)
    before = warnings.showwarning
    assert cli.main(["do"]) == 0
    assert capsys.readouterr().err == "fxcompress: note: conv1 stays\n"
    assert warnings.showwarning is before


def test_a_reader_that_has_enough_gets_no_traceback(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "import sys; from fxcompress import cli; from fxcompress.commands.found import Found\n"
        "def add(commands):\n"
        "    commands.add_parser('do').set_defaults(run=lambda options: Found({}, ('x',)))\n"
        "cli.COMMANDS = (add,); sys.exit(cli.main(['do']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_executable_is_the_one_of_this_environment() -> None:
    assert os.access(FXCOMPRESS, os.X_OK)
