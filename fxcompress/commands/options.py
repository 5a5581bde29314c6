"""Options that several commands share; what they say is checked here, without torch."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxcompress.errors import FxcompressError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_SHAPE = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")


@dataclass(frozen=True)
class InputSpec:
    """One input: a shape to fill with random numbers, or a file of arrays; for the argument ``name`` if
    given."""

    name: str | None
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    file: Path | None = None


def new_command(
    commands: Commands, name: str, text: str, examples: str, more: str = ""
) -> argparse.ArgumentParser:
    """The parser of a command that does ``text``; ``more`` sentences and the examples are in its own help."""
    description = textwrap.fill(f"{text[0].upper()}{text[1:]}. {more}".strip(), 100)
    listed = "\n".join(f"  $ {line}" for line in examples.strip().splitlines())
    return commands.add_parser(
        name,
        help=text,
        description=description,
        epilog=f"examples:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return number


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'expected a JSON object such as {{"num_classes": 10}}, got {text!r} ({error})'
        ) from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(
            f'expected a JSON object such as {{"num_classes": 10}}, got {text!r}'
        )
    return value


def names(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def fractions(text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0.25,0.5, got {text!r}") from error


def input_spec(text: str) -> InputSpec:
    """``1x3x224x224``, ``ids=1x16:int64``, ``x.npy``, ``inputs.npz``."""
    name, separator, rest = text.rpartition("=")
    if separator and not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=…, NAME an argument of the model, got {text!r}")
    if rest.endswith((".npy", ".npz")):
        if separator and rest.endswith(".npz"):
            raise argparse.ArgumentTypeError(f"{text!r}: the arrays of an .npz file have names of their own")
        return InputSpec(name or None, file=Path(rest))
    match = _SHAPE.fullmatch(rest)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected a shape such as 1x3x224x224 or 1x16:int64, or an .npy or .npz file, got {text!r}"
        )
    shape, dtype = tuple(int(size) for size in match[1].split("x")), match[2] or "float32"
    if dtype not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return InputSpec(name or None, shape, dtype)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, its weights and its inputs (``commands.models`` reads them)."""
    parser.add_argument(
        "model", metavar="MODEL",
        help="package.module:name of a model, or of a class or function that makes it; or a .pt2 file that "
        "fxcompress wrote",
    )  # fmt: skip
    parser.add_argument(
        "--model-args", type=json_object, metavar="JSON", help="keyword arguments of that class or function"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="state dict to load: .safetensors, or written by torch.save (read without pickle)",
    )  # fmt: skip
    add_inputs(parser, "found from the first layers, or those of the .pt2 file")


def check_model(options: argparse.Namespace) -> None:
    """Before torch is imported: whether MODEL names a place or an existing file.

    Raises:
        FxcompressError: if it does not.
    """
    if options.model.endswith(".pt2"):
        check_model_file(Path(options.model))
    elif Path(options.model).suffix in _CHECKPOINTS:
        raise FxcompressError(
            f"{options.model}: a checkpoint is loaded into a model: name what makes that, "
            f"package.module:name, and give the file with --weights {options.model}"
        )
    elif ":" not in options.model:
        raise FxcompressError(
            f"{options.model!r}: expected package.module:name, such as models.resnet:make for make of "
            "models/resnet.py, or a .pt2 file"
        )


def check_model_file(path: Path) -> None:
    """Whether ``path`` is a model file.

    Raises:
        FxcompressError: if it is not.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise FxcompressError(f"{path}: expected an .onnx or .pt2 file")
    if not path.is_file():
        raise FxcompressError(f"{path}: there is no such file")


def check_target(path: Path, *suffixes: str) -> None:
    """Whether a file of this name can be written, before the work is done.

    Raises:
        FxcompressError: if its name or its folder is wrong.
    """
    if suffixes and path.suffix not in suffixes:
        raise FxcompressError(f"{path}: expected a name that ends with {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FxcompressError(
            f"cannot write {path}: the folder {path.parent} does not exist; create it first"
        )


def add_inputs(parser: argparse.ArgumentParser, default: str) -> None:
    """``--input``, once for each input."""
    parser.add_argument(
        "--input", type=input_spec, action="append", default=[], metavar="SPEC", dest="inputs",
        help="one input: [NAME=]1x3x224x224[:float32], random, integers 0 and 1; or an .npy or .npz file; "
        f"repeat for more (default: {default})",
    )  # fmt: skip


def add_place(parser: argparse.ArgumentParser, flag: str, what: str, *, required: bool = False) -> None:
    """An object of one's own code (``fxcompress.places``)."""
    parser.add_argument(flag, metavar="package.module:name", required=required, help=what)


def add_amx(parser: argparse.ArgumentParser) -> None:
    """For which processors an int8 file is laid out."""
    text = "lay int8 convolutions out for processors with AMX (default: if this one has it)"
    parser.add_argument("--amx", action=argparse.BooleanOptionalAction, default=None, help=text)
