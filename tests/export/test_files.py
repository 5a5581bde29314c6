"""Folders that are filled at the end or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxcompress.errors import ExportError
from fxcompress.export.files import filling


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_move_into_the_folder_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    (out / "old.txt").write_text("old")
    (out / "new.txt").write_text("before")
    with filling(out) as folder:
        (folder / "new.txt").write_text("after")
        assert (out / "new.txt").read_text() == "before"
    assert names(out) == ["new.txt", "old.txt"]
    assert (out / "new.txt").read_text() == "after"


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("before")

    def write() -> None:
        with filling(tmp_path) as folder:
            (folder / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "before"


def test_a_folder_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), filling(tmp_path / "new"):
        raise ValueError("wrong")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    told = r"cannot write into .*taken: File exists; name another folder"
    with pytest.raises(ExportError, match=told), filling(tmp_path / "taken"):
        pass
    assert names(tmp_path) == ["taken"]
