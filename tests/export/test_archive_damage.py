"""Files that are damaged or hostile: one clear error each, and nothing in them is ever run."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fxcompress.errors import ExportError
from fxcompress.export import archive
from fxcompress.export.archive import load, save
from fxcompress.export.targets import function_of
from fxcompress.graph.capture import capture
from tests.export.models import build

Edit = Callable[[Any], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("good") / "model"
    model, inputs = build("residual")
    save(capture(model.eval(), inputs), path)
    return path


def rewritten(good: Path, target: Path, members: dict[str, Callable[[bytes], bytes | None]]) -> Path:
    """A copy of ``good`` with some members changed (``None`` leaves one out)."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(target, "w") as sink:
        for name in source.namelist():
            content: bytes | None = source.read(name)
            if name in members and content is not None:
                content = members[name](content)
            if content is not None:
                sink.writestr(name, content)
    return target


def edited(good: Path, target: Path, member: str, edit: Edit) -> Path:
    """A copy of ``good`` whose JSON member was changed by ``edit``."""

    def change(content: bytes) -> bytes:
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return rewritten(good, target, {member: change})


def node(data: Any, op: str) -> Any:
    return next(entry for entry in data["nodes"] if entry["op"] == op)


def test_a_file_that_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    with pytest.raises(ExportError, match=r"not a zip file; expected a file written by fxcompress.save"):
        load(tmp_path / "a")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"No such file"):
        load(tmp_path / "nothing")
    with pytest.raises(ExportError, match=r"directory|Permission"):
        load(tmp_path)
    model, inputs = build("sequential")
    module = capture(model, inputs)
    with pytest.raises(ExportError, match=r"the folder .* does not exist; create it"):
        save(module, tmp_path / "no" / "model")


def test_a_state_dict_is_told_apart(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(ExportError, match=r"lacks graph.json.*expected a file written by fxcompress.save"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "member", ["graph.json", "modules.json", "weights.safetensors", "inputs.safetensors"]
)
def test_a_missing_or_garbled_member(good: Path, member: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"lacks {member}"):
        load(rewritten(good, tmp_path / "a", {member: lambda _: None}))
    with pytest.raises(ExportError, match=r"damaged|save the model again"):
        load(rewritten(good, tmp_path / "b", {member: lambda old: old[: len(old) // 2]}))


def test_another_format_version(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"format version 99, this fxcompress reads 1\n.*Update fxcompress"):
        load(edited(good, tmp_path / "a", "graph.json", lambda d: d.update(version=99)))


def test_every_truncation_is_reported(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    for size in range(0, len(content), max(1, len(content) // 40)):
        (tmp_path / "a").write_bytes(content[:size])
        with pytest.raises(ExportError):
            load(tmp_path / "a")


def test_a_flipped_byte_is_refused_or_without_effect(good: Path, tmp_path: Path) -> None:
    """Only dates and flags in the zip's own headers can change unnoticed; contents carry a checksum."""
    expected = load(good).state_dict()
    content = bytearray(good.read_bytes())
    for position in range(7, len(content), len(content) // 60):
        content[position] ^= 0xFF
        (tmp_path / "a").write_bytes(content)
        with contextlib.suppress(ExportError):
            loaded = load(tmp_path / "a").state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in expected.items())
        content[position] ^= 0xFF


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "operator.methodcaller", "fxcompress.ops.torch", "fxcompress.ops.F",
     "aten.from_file.default", "aten.save.default", "aten.__class__.mro", "aten.add", 7],
)  # fmt: skip
def test_functions_that_are_not_on_the_list_are_refused(good: Path, name: Any, tmp_path: Path) -> None:
    def edit(data: Any) -> None:
        node(data, "call_function").update(target=name, args={"tuple": ["touch pwned"]})

    with pytest.raises(ExportError, match=r"is not one that a model file may call.*\n.*get it again"):
        load(edited(good, tmp_path / "a", "graph.json", edit))


def test_the_operators_of_captured_models_are_on_the_list() -> None:
    assert function_of("aten.add.Tensor", "here") is torch.ops.aten.add.Tensor
    with pytest.raises(ExportError, match=r"did you mean 'operator.getitem'"):
        function_of("operator.getitm", "here")


INJECTIONS: dict[str, tuple[str, Edit]] = {
    "node name": ("graph.json", lambda d: node(d, "placeholder").update(name="x=__import__('os').abort()")),
    "input name": (
        "graph.json",
        lambda d: node(d, "placeholder").update(target="x=__import__('os').abort()"),
    ),
    "argument": ("graph.json", lambda d: d["signature"].update(arguments=["x=__import__('os').abort()"])),
    "keyword": (
        "graph.json",
        lambda d: node(d, "call_function").update(kwargs={"dict": [["a=__import__('os').abort(),b", 1]]}),
    ),
    "class": ("graph.json", lambda d: d.update({"class": "A:\n import os; os.abort()\nclass B"})),
    "attribute": ("graph.json", lambda d: node(d, "get_attr").update(target='a"+__import__("os").abort()+"')),
    "module call": ("graph.json", lambda d: node(d, "call_module").update(target="stem.__init__")),
    "method": ("graph.json", lambda d: node(d, "call_function").update(op="call_method", target="tofile")),
    "module name": ("modules.json", lambda d: d["modules"][0].update(name='a"+__import__("os").abort()+"')),
    "module class": ("modules.json", lambda d: d["modules"][0].update({"class": "subprocess.Popen"})),
    "constructor": ("modules.json", lambda d: d["modules"][0]["arguments"].update(device="cuda")),
    "scope call": ("modules.json", lambda d: d["modules"][0].update(kind="scope")),
    "dtype": ("graph.json", lambda d: node(d, "call_function").update(args={"tuple": [{"dtype": "hub"}]})),
    "tag": ("graph.json", lambda d: node(d, "call_function").update(args={"pickle": "gANjb3M="})),
    "spec": (
        "graph.json",
        lambda d: d["signature"].update(outputs=[["collections.defaultdict", ["os"], []]]),
    ),
    "tensor size": ("modules.json", lambda d: d["tensors"][0].update(stride=[1 << 60, 1, 1, 1])),
    "tie": (
        "modules.json",
        lambda d: d["tensors"].append({"name": "fc.weight", "kind": "parameter", "of": "nothing"}),
    ),
    "swapped": ("modules.json", lambda d: d["tensors"][0].update(name="fc.weight")),
    "nesting": ("graph.json", lambda d: d.update(example_inputs={"tuple": [{"tuple": []}]})),
}


@pytest.mark.parametrize("what", INJECTIONS)
def test_hostile_or_inconsistent_contents_are_refused(good: Path, what: str, tmp_path: Path) -> None:
    member, edit = INJECTIONS[what]
    with pytest.raises(ExportError, match=r"cannot load"):
        load(edited(good, tmp_path / "a", member, edit))


def test_endless_nesting_is_refused(good: Path, tmp_path: Path) -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    with pytest.raises(ExportError, match=r"damaged"):
        load(rewritten(good, tmp_path / "a", {"graph.json": lambda _: deep}))


@pytest.mark.parametrize("member", ["graph.json", "weights.safetensors"])
def test_what_expands_to_fill_the_memory_is_refused(
    good: Path, member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_LARGEST_JSON", 1 << 20)
    path = tmp_path / "a"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as sink:
        for name in source.namelist():
            sink.writestr(name, b" " * (2 << 20) if name == member else source.read(name))
    with pytest.raises(ExportError, match=rf"{member} would expand to 2,097,152 bytes"):
        load(path)


def test_constructor_arguments_cannot_be_given_twice_over(good: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no argument of Conv2d|no argument of"):
        load(edited(good, tmp_path / "a", "modules.json", INJECTIONS["constructor"][1]))
