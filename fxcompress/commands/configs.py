"""Config lists from files: TOML, YAML or JSON. Errors name the file, the entry and the key.

    [[config]]                       - sparsity: 0.5                  [{"sparsity": 0.5,
    sparsity = 0.5                     op_types: [Conv2d]               "op_types": ["Conv2d"]}]
    op_types = ["Conv2d"]

A YAML or JSON file may also hold ``{"config": [...]}``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fxcompress.errors import ConfigError, did_you_mean

KEY = "config"


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config file."""
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="config list: .toml, .yaml or .json"
    )


def read_config(path: Path) -> list[dict[str, Any]]:
    """The config list in ``path``, not yet checked.

    Raises:
        ConfigError: if the file cannot be read or holds something else, with the line where it is known.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: expected a file named {', '.join(_READERS)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        content = reader(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if isinstance(content, dict):
        wrong = next((key for key in content if key != KEY), None)
        if wrong is not None:
            raise ConfigError(
                f"{path}: {wrong!r}: expected nothing but {KEY!r}, a list of entries"
                f"{did_you_mean(str(wrong), [KEY]) or '; in TOML each entry begins with [[config]]'}"
            )
        content = content.get(KEY)
    if not isinstance(content, list):
        got = "nothing" if content is None else type(content).__name__
        raise ConfigError(
            f"{path}: expected a list of entries, got {got}; in TOML each begins with [[config]]"
        )
    return content


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Config errors of the block name the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            f"YAML needs PyYAML, which cannot be imported ({error}); pip install 'fxcompress[yaml]', or "
            "write TOML"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{where}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


_READERS: dict[str, Callable[[str], Any]] = {
    ".toml": _toml,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": json.loads,
}
