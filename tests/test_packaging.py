"""What is installed: the package list is complete, wheels hold the passes, `passes` alone is no package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fxcompress

ROOT = Path(__file__).parent.parent
TEMPLATES = [file.name for file in (ROOT / "fxcompress" / "page" / "templates").iterdir()]
PASSES = {f"fxcompress/passes/{file.name}" for file in (ROOT / "passes").glob("*.py")}

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")


def project() -> dict[str, object]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_the_package_list_is_complete() -> None:
    tool = project()["tool"]
    assert isinstance(tool, dict)
    folders = {file.parent for file in (ROOT / "fxcompress").glob("**/*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders} | {"fxcompress.passes"}
    assert sorted(found) == tool["setuptools"]["packages"]


def test_the_version_is_that_of_the_project() -> None:
    table = project()["project"]
    assert isinstance(table, dict)
    assert fxcompress.__version__ == table["version"]
    assert fxcompress.__version__ == metadata.version("fxcompress")


def test_passes_are_reached_through_one_link() -> None:
    link = ROOT / "fxcompress" / "passes"
    assert link.is_symlink()
    assert os.readlink(link) == "../passes"


def test_importing_the_folder_passes_names_the_right_package() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "fxcompress.passes" in done.stderr.splitlines()[-1]


def copy_of_the_project(folder: Path) -> Path:
    """What git tracks of the package, with the link as a link."""
    target = folder / "project"
    target.mkdir()
    for name in ("fxcompress", "passes"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def build(source: Path, *, into: Path) -> None:
    """Call the build backend as an installer does, without the network."""
    code = (
        f"from setuptools import build_meta as b; b.build_sdist({str(into)!r}); b.build_wheel({str(into)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_wheel_holds_the_passes_also_when_built_from_an_sdist(tmp_path: Path) -> None:
    direct, again = tmp_path / "direct", tmp_path / "again"
    direct.mkdir()
    again.mkdir()
    build(copy_of_the_project(tmp_path), into=direct)
    (sdist,) = direct.glob("*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert not (unpacked / "fxcompress" / "passes").is_symlink()
    build(unpacked, into=again)
    for folder in (direct, again):
        (wheel,) = folder.glob("*.whl")
        names = set(zipfile.ZipFile(wheel).namelist())
        assert names >= PASSES
        assert "fxcompress/py.typed" in names
        assert {f"fxcompress/page/templates/{name}" for name in TEMPLATES} <= names
        assert not any(name.startswith("passes/") for name in names)
