"""The real executable in a folder of its own, and the command line in this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fxcompress.cli import main

FXCOMPRESS = Path(sys.executable).with_name("fxcompress")
PROJECT = Path(__file__).with_name("project")
ROOT = Path(__file__).parents[2]
TIMEOUT = 300

Done = subprocess.CompletedProcess[str]


def environment(path: Path | None = None) -> dict[str, str]:
    """One thread, 100 columns; the modules in the folder ``path`` come before all others."""
    folders = [str(folder) for folder in (path, ROOT) if folder is not None]
    return {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(folders)}


def run(*arguments: str, cwd: Path, path: Path | None = None) -> Done:
    """Run ``fxcompress`` in ``cwd``."""
    return subprocess.run(
        [FXCOMPRESS, *arguments],
        cwd=cwd,
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def error_line(done: Done) -> str:
    """The only line on stderr of a run that failed with exit code 1 and printed nothing else."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("fxcompress: error: ")
    return line


def facts(done: Done) -> Any:
    """The one JSON object that a run with ``--json`` printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def interrupted(*arguments: str, cwd: Path, when: Path) -> Done:
    """Run ``fxcompress`` and press Ctrl-C as soon as ``when`` exists, or is a folder that holds something."""
    # A run in the background of a shell ignores the signal, and so would its children.
    restore = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [FXCOMPRESS, *arguments],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore,
    )
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until and process.poll() is None:
        if when.is_file() or (when.is_dir() and any(when.iterdir())):
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(arguments, process.returncode, output, errors)


def project(folder: Path) -> Path:
    """A copy of the user's folder."""
    shutil.copytree(PROJECT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that fails with exit code 1, run in this process."""
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("fxcompress: error: ")
    assert "Unexpected" not in told.err
    return told.err.removeprefix("fxcompress: error: ").rstrip()


def usage(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a wrong use of the command line prints, run in this process."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err
