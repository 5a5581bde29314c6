"""Two processes share one study in PostgreSQL, which the test starts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.auto.test_resume import TIMEOUT, rows, runs, start


def program(name: str) -> str:
    """A server program of Debian's package ``postgresql``, which is not on the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install postgresql")
    return found


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a fresh database."""
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed: pip install psycopg2-binary")
    initdb, control = program("initdb"), program("pg_ctl")
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to be root
        as_user = ["runuser", "-u", "postgres", "--"]
        if subprocess.run(["id", "postgres"], capture_output=True).returncode or not shutil.which("runuser"):
            pytest.skip("running as root, and there is no user postgres to run the server as")
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        data = str(Path(folder) / "data")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        making = [initdb, "-D", data, "-A", "trust", "-U", "postgres"]
        starting = [control, "-D", data, "-o", options, "-w", "-l", f"{folder}/log", "start"]
        for command in (making, starting):
            subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder, timeout=TIMEOUT)
        try:
            yield f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
        finally:
            stopping = [control, "-D", data, "-m", "immediate", "stop"]
            subprocess.run([*as_user, *stopping], check=True, capture_output=True, cwd=folder)


def test_two_processes_share_one_study(server: str, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    processes = [start(folder, 12, storage=server) for folder in folders]
    for process, folder in zip(processes, folders, strict=True):
        assert process.wait(TIMEOUT) == 0, (folder / "stderr.txt").read_text()
    found = rows(tmp_path, server)
    assert [row.state for row in found] == ["complete"] * 12
    ran = [set(runs(folder)) for folder in folders]
    assert all(ran)
    assert not ran[0] & ran[1]
    assert ran[0] | ran[1] == {row.number for row in found}
    assert len({row.params["x"] for row in found}) == 12
