"""Writing files so that an interrupted write leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from fxcompress.errors import ExportError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path of the same file name in a new folder; what is there at the end replaces ``path``.

    Other files written into that folder move next to ``path`` too (external tensor data of an ONNX model),
    before the file itself. On an exception nothing that existed is touched.

    Raises:
        ExportError: if the folder of ``path`` does not exist or ``path`` is a folder.
    """
    final = Path(path)
    if not final.parent.is_dir():
        raise ExportError(f"cannot write {final}: the folder {final.parent} does not exist; create it first")
    if final.is_dir():
        raise ExportError(f"cannot write {final}: it is a folder; give a file name")
    # The name is chosen before the folder exists, so that an interrupt at any point finds it to delete.
    folder = final.parent / f".{final.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder / final.name
        for extra in sorted(folder.iterdir()):
            if extra.name != final.name:
                os.replace(extra, final.parent / extra.name)
        os.replace(folder / final.name, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder; the files in it at the end move into ``folder``, each whole.

    They replace those of their names. On an exception none moves. ``folder`` is made if it does not exist.

    Raises:
        ExportError: if the folder cannot be made or written to.
    """
    final = Path(folder)
    staging = final / f".{os.getpid()}.{secrets.token_hex(4)}"
    existed = final.exists()
    try:
        try:
            final.mkdir(parents=True, exist_ok=True)
            staging.mkdir(mode=0o700)
        except OSError as error:
            raise ExportError(f"cannot write into {final}: {error.strerror}; name another folder") from error
        yield staging
        for file in sorted(staging.iterdir()):
            os.replace(file, final / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # it is not empty
                final.rmdir()
