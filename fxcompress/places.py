"""``package.module:name``: objects of one's own code, named on a command line or in a file.

Modules are looked for in the current folder first, as ``python -m`` does. Whatever one's own code raises
becomes one error that names the place and the line; the exception itself is its cause.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from fxcompress.errors import FxcompressError, did_you_mean, first_line


def resolve(place: str) -> Any:
    """What ``"package.module:name"`` stands for; ``name`` may have dots (``module:Net.small``).

    Raises:
        FxcompressError: if there is no such module or name (with near misses), or importing it fails.
    """
    module_name, _, name = place.partition(":")
    if not module_name or not name:
        raise FxcompressError(
            f"{place!r}: expected package.module:name, such as models.resnet:make for the function make of "
            "models/resnet.py"
        )
    if module_name.endswith(".py") or "/" in module_name or os.sep in module_name:
        dotted = ".".join(Path(module_name).with_suffix("").parts).lstrip("./")
        raise FxcompressError(
            f"{place!r}: expected package.module:name, got a path; did you mean '{dotted}:{name}'? "
            "Modules are looked for in the current folder"
        )
    value: Any = _module(module_name)
    path = module_name
    for part in name.split("."):
        if not hasattr(value, part):
            public = [n for n in dir(value) if not n.startswith("_")]
            raise FxcompressError(f"{place}: {path} has no {part!r}" + did_you_mean(part, public))
        value, path = getattr(value, part), f"{path}.{part}"
    return value


def function(place: str) -> Callable[..., Any]:
    """``resolve(place)`` as a function whose exceptions name the place.

    Raises:
        FxcompressError: as ``resolve``, or if it cannot be called.
    """
    found = resolve(place)
    if not callable(found):
        raise FxcompressError(f"{place}: expected a function, got {type(found).__name__}")

    @wraps(found)
    def called(*args: Any, **kwargs: Any) -> Any:
        with blamed(place):
            return found(*args, **kwargs)

    return called


@contextlib.contextmanager
def blamed(place: str) -> Iterator[None]:
    """Exceptions of the block, save our own, become an error that names ``place`` and the line."""
    try:
        yield
    except FxcompressError:
        raise
    except Exception as error:
        raise FxcompressError(f"{place} raised {_told(error)}") from error


class Batches:
    """Batches from ``place``: an iterable, or a function that returns one.

    A function that returns an iterator (a generator, say) is called again for every pass.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        found = resolve(place)
        self._make: Callable[[], Any] | None = None
        self._made: Iterable[Any] | None = None
        if isinstance(found, Iterable) and not isinstance(found, type):
            self._made = found
        elif callable(found):
            self._make = found
        else:
            raise FxcompressError(
                f"{place}: expected batches or a function that returns them, got {type(found).__name__}"
            )

    def __iter__(self) -> Iterator[Any]:
        with blamed(self.place):
            made = self._made if self._made is not None or self._make is None else self._make()
            if not isinstance(made, Iterable):
                raise FxcompressError(f"{self.place} returned {type(made).__name__}; expected batches")
            if not isinstance(made, Iterator):
                self._made = made
            empty = True
            for batch in made:
                empty = False
                yield batch
            if empty:
                raise FxcompressError(f"{self.place} gave no batches")


def _module(name: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise FxcompressError(f"importing {name} raised {_told(error)}") from error
        parent, _, last = error.name.rpartition(".")
        near = [m.name for m in pkgutil.iter_modules(sys.modules[parent].__path__ if parent else [folder])]
        where = parent or "the current folder and what is installed"
        remedy = did_you_mean(last, near) or "; start where it is found, or set PYTHONPATH"
        raise FxcompressError(f"there is no module {last!r} in {where}{remedy}") from error
    except (Exception, SystemExit) as error:
        raise FxcompressError(f"importing {name} raised {_told(error)}") from error


def _told(error: BaseException) -> str:
    """``ValueError: message (file.py, line 3)``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.startswith(os.getcwd() + os.sep)] or frames
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({Path(error.filename).name}, line {error.lineno})"
        return f"SyntaxError: {error.msg}{where}"
    return f"{type(error).__name__}: {first_line(error)}{where}"
