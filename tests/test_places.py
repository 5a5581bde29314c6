"""``package.module:name``: what is found, and what is said of what is not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxcompress.errors import FxcompressError
from fxcompress.places import Batches, function, resolve

PLACES = "the current folder and what is installed"
SOURCE = """
class Net:
    small = "a small one"
    def fail(self):
        raise ValueError("no weights")

calls = []
def batches():
    calls.append(1)
    yield from (1, 2)
def listed():
    calls.append(1)
    return [1, 2]
def none():
    return []
def number():
    return 3
def broken():
    yield 1
    raise OSError("disk full")
ready = [4, 5]
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder holds modules; what is imported from it is forgotten afterwards."""
    known, path = set(sys.modules), list(sys.path)
    (tmp_path / "zoo").mkdir()
    for name, source in {
        "zoo/nets.py": SOURCE,
        "zoo/__init__.py": "",
        "typo.py": "x = (\n",
        "needs.py": "import gone\n",
        "script.py": "import sys\nsys.exit(3)\n",
        "raises.py": "\n\nunknown\n",
    }.items():
        (tmp_path / name).write_text(source)
    monkeypatch.chdir(tmp_path)
    yield
    sys.path[:] = path
    # Not the libraries that torch imported meanwhile: they register operators only once.
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_names_with_dots_and_modules_of_packages_are_found() -> None:
    assert resolve("zoo.nets:Net.small") == "a small one"
    assert function("zoo.nets:number")() == 3


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("zoo.nets", "'zoo.nets': expected package.module:name, such as models.resnet:make"),
        ("zoo.nets:", "'zoo.nets:': expected package.module:name"),
        ("zo.nets:Net", f"there is no module 'zo' in {PLACES}; did you mean 'zoo'?"),
        ("zoo.net:Net", "there is no module 'net' in zoo; did you mean 'nets'?"),
        ("qqqqqq:Net", f"there is no module 'qqqqqq' in {PLACES}; start where it is"),
        ("zoo.nets:net", "zoo.nets:net: zoo.nets has no 'net'; did you mean 'Net'?"),
        ("zoo.nets:Net.smal", "zoo.nets:Net.smal: zoo.nets.Net has no 'smal'; did you mean 'small'?"),
        ("typo:x", "importing typo raised SyntaxError: '(' was never closed (typo.py, line 1)"),
        ("needs:x", "importing needs raised ModuleNotFoundError: No module named 'gone' (needs.py, line 1)"),
        ("script:x", "importing script raised SystemExit: 3 (script.py, line 2)"),
        ("raises:x", "importing raises raised NameError: name 'unknown' is not defined (raises.py, line 3)"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named(place: str, told: str) -> None:
    with pytest.raises(FxcompressError) as error:
        resolve(place)
    assert str(error.value).startswith(told)


def test_what_a_function_raises_names_the_line() -> None:
    with pytest.raises(
        FxcompressError, match=r"^zoo.nets:Net.fail raised ValueError: no weights \(nets.py, line 5\)$"
    ):
        function("zoo.nets:Net.fail")(None)
    with pytest.raises(FxcompressError, match=r"zoo\.nets:ready: expected a function, got list"):
        function("zoo.nets:ready")


def test_a_generator_function_is_called_for_every_pass_and_a_list_is_made_once() -> None:
    calls = resolve("zoo.nets:calls")
    again = Batches("zoo.nets:batches")
    assert [list(again), list(again), len(calls)] == [[1, 2], [1, 2], 2]
    once = Batches("zoo.nets:listed")
    assert [list(once), list(once), len(calls)] == [[1, 2], [1, 2], 3]
    assert list(Batches("zoo.nets:ready")) == [4, 5]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none", "zoo.nets:none gave no batches"),
        ("number", "zoo.nets:number returned int; expected batches"),
        ("broken", r"zoo.nets:broken raised OSError: disk full \(nets.py, line 20\)"),
        ("Net.small.real", "zoo.nets:Net.small.real: zoo.nets.Net.small has no 'real'"),
    ],
)
def test_what_gives_no_batches_is_named(name: str, told: str) -> None:
    with pytest.raises(FxcompressError, match=f"^{told}"):
        list(Batches(f"zoo.nets:{name}"))
