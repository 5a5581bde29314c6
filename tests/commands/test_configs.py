"""Config files: the same list in every format, and what is wrong with a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fxcompress.commands.configs import naming, read_config
from fxcompress.errors import ConfigError

LIST = [{"sparsity": 0.5, "op_types": ["Conv2d"]}, {"quant_bits": {"weight": 4, "input": 8}}]
TOML = """
[[config]]
sparsity = 0.5
op_types = ["Conv2d"]

[[config]]
quant_bits = {weight = 4, input = 8}
"""
YAML = """
- sparsity: 0.5
  op_types: [Conv2d]
- quant_bits: {weight: 4, input: 8}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", TOML),
        ("a.yaml", YAML),
        ("a.yml", "config:" + YAML),
        ("a.json", json.dumps(LIST)),
        ("a.json", json.dumps({"config": LIST})),
    ],
)
def test_the_same_list_in_every_format(tmp_path: Path, name: str, text: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    assert read_config(tmp_path / name) == LIST


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "", "expected a file named .toml, .yaml, .yml, .json"),
        ("a.toml", "config = 3", "expected a list of entries, got int; in TOML each begins with"),
        ("a.toml", "", "expected a list of entries, got nothing"),
        (
            "a.toml",
            "[confg]",
            "'confg': expected nothing but 'config', a list of entries; did you mean 'config'",
        ),
        ("a.toml", "sparsity = 0.5", "'sparsity': expected nothing but 'config', a list of entries; in TOML"),
        ("a.json", '[{"sparsity": 0.5},]', "line 1 column"),
        ("a.yaml", "- sparsity: [0.5\n- x", r"line 2\)"),
        ("a.yaml", "- !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    pytest.importorskip("yaml")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"^{tmp_path / name}: .*{told}"):
        read_config(tmp_path / name)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[\xff]")
    with pytest.raises(ConfigError, match=r"expected text in UTF-8 \(invalid start byte at byte 1\)"):
        read_config(tmp_path / "a.json")


def test_without_pyyaml_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "a.yaml").write_text(YAML)
    with pytest.raises(ConfigError, match=r"pip install 'fxcompress\[yaml\]', or write TOML"):
        read_config(tmp_path / "a.yaml")


def test_errors_of_a_block_name_the_file() -> None:
    with pytest.raises(ConfigError, match=r"^prune\.toml: wrong$"), naming(Path("prune.toml")):
        raise ConfigError("wrong")
