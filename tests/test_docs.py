"""Every fenced block of README.md and docs/ that is code runs, in order, in an empty folder.

```python     run in one namespace per file; a ```text block right below it is what it prints
```console    every line ``$ fxcompress …`` runs (in this process) and succeeds; a ```text block likewise
# name.ext    a block that begins with a line like this is that file
```bash       set-up commands, which CI itself runs (see ``.ci/run``): not repeated here

A page whose blocks import a package that fxcompress does not need (``tests.optional``) is skipped where that
is not installed; the reason names the command that installs it. CI installs them all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.generated import with_blocks
from benchmarks.results_file import RESULTS, read_json
from docs.site_pages import on_page_markdown
from fxcompress.cli import main
from tests.optional import HOW_TO_GET, imported, missing, require

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "console", "text", "bash", "toml"}
SETUP = ("pip install '.[demo]' && fxcompress demo", "pip install -e '.[dev]' && make check")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TABLES = re.compile(r"<!-- benchmarks: .*?<!-- /benchmarks -->", re.DOTALL)
_FILE = re.compile(r"# ([\w.]+\.\w+)\n")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``prints`` is the text block right below it."""

    language: str
    code: str
    line: int
    prints: str | None = None


def blocks(text: str) -> Iterator[Block]:
    found = list(_FENCE.finditer(text))
    for match, following in zip(found, [*found, None][1:], strict=True):
        prints = None
        if (
            following is not None
            and following[1] == "text"
            and not text[match.end() : following.start()].strip()
        ):
            prints = following[2]
        yield Block(match[1], match[2], text.count("\n", 0, match.start()) + 2, prints)


def packages(found: Iterable[Block]) -> set[str]:
    """What the page's Python imports."""
    return {name for block in found if block.language == "python" for name in imported(block.code)}


def run_python(block: Block, namespace: dict[str, Any], file: Path) -> None:
    """Execute the block; tracebacks show the line of the document."""
    printed = io.StringIO()
    code = compile("\n" * (block.line - 1) + block.code, str(file), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    check_printed(block, printed.getvalue(), file)


def check_printed(block: Block, printed: str, file: Path) -> None:
    """Compare with the text block below, lines without what is blank at their ends."""
    if block.prints is not None:
        got = [line.rstrip() for line in printed.strip().splitlines()]
        assert got == [line.rstrip() for line in block.prints.strip().splitlines()], (
            f"{file.name}:{block.line}"
        )


def run_console(block: Block, file: Path) -> None:
    """Run the commands in this process: the real executable has tests of its own."""
    printed = io.StringIO()
    for line in block.code.splitlines():
        if line.startswith("$ "):
            program, *arguments = shlex.split(line[2:])
            assert program == "fxcompress", f"{file.name}:{block.line}: {line}"
            with contextlib.redirect_stdout(printed):
                assert main(arguments) == 0, f"{file.name}:{block.line}: {line}"
    check_printed(block, printed.getvalue(), file)


@pytest.fixture
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    modules, path = set(sys.modules), list(sys.path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("_empty_folder")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_block_runs(file: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    found = list(blocks(file.read_text(encoding="utf-8")))
    require(packages(found))
    for block in found:
        assert block.language in LANGUAGES, f"{file.name}:{block.line}: nothing runs ```{block.language}"
        if named := _FILE.match(block.code):
            Path(named[1]).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            run_python(block, namespace, file)
        elif block.language == "console":
            run_console(block, file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_block_is_skipped(file: Path) -> None:
    """What does not run itself is a file, what the block above it prints, or a command that CI runs."""
    text = file.read_text(encoding="utf-8")
    found = list(blocks(text))
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found)
    above = None
    for block in found:
        runs = block.language in ("python", "console") and not _FILE.match(block.code)
        printed = above is not None and above.prints == block.code
        setup = block.language == "bash" and set(block.code.splitlines()) <= {*SETUP, ""}
        known = runs or printed or setup or _FILE.match(block.code)
        assert known, f"{file.name}:{block.line}: nothing runs this block"
        above = block if runs else None


def test_the_setup_commands_of_the_readme_are_those_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = [line for b in blocks(readme) if b.language == "bash" for line in b.code.splitlines() if line]
    assert commands == list(SETUP)
    ci, check = ((ROOT / ".ci" / name).read_text(encoding="utf-8") for name in ("run", "check"))
    assert "pip install -qq --progress-bar off -e '.[dev]'" in ci
    assert ci.rstrip().endswith("exec .ci/check")
    assert "\ncheck:\n\t@.ci/check\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    for tool in (
        "ruff check .",
        "ruff format --check",
        "mypy",
        "mkdocs build --strict",
        "python -m pytest",
    ):
        assert f"step {tool}" in check
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in ("run", "check"))


def test_the_figures_of_the_readme_are_the_recorded_ones() -> None:
    """The tables; of the demo also the sentence below its table."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_blocks(readme, RESULTS) == readme, "python -m benchmarks --readme"
    assert re.findall(r"<!-- benchmarks: (\w+) -->", readme) == ["demo", "peers"]
    options = read_json(RESULTS / "demo.json")["options"]
    words, epochs = " ".join(readme.split()), options["epochs"]
    assert f"seed {options['seed']}, 450 test images; the dense model trained for {epochs} epochs" in words
    assert f"the small one for {epochs // 2} more under masks" in words


def test_no_figure_of_a_record_stands_in_the_prose_of_the_readme() -> None:
    """A ratio, a share or a duration belongs into a table that is generated."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    opening = _TABLES.sub("", readme.partition("```python")[0])
    figures = re.findall(r"\d+\.\d+(?!e)\b|\d+ ?[%×]|\d+ (?:ms|s|dB|of)\b", opening)
    assert figures == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_relative_links_lead_somewhere(file: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", file.read_text(encoding="utf-8"))):
        if "://" not in target:
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_a_page_waits_for_the_packages_that_it_imports_and_for_no_other() -> None:
    code = "import torch, lightning.pytorch as pl\n\nfrom timm.data import a\nfrom .b import c\n"
    assert packages(blocks(f"```python\n{code}```\n\n```text\nimport d\n```\n")) == {
        "torch",
        "lightning",
        "timm",
    }
    assert missing({"torch", "no_such_package"}) is None, "that one fails, it is not skipped"


@pytest.mark.parametrize("name", HOW_TO_GET)
def test_a_page_is_skipped_only_where_a_package_is_absent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert missing({"torch", name}) == f"{name} is not installed: {HOW_TO_GET[name]}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    assert missing({"torch", name}) is None


def test_ci_installs_every_package_that_pages_import() -> None:
    """So that no page is skipped there."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    installed = {word for line in ci.splitlines() if line.startswith("pip install") for word in line.split()}
    for name, command in HOW_TO_GET.items():
        wanted = command.split()[-1].strip("'")
        extra = re.fullmatch(r"fxcompress\[(\w+)\]", wanted)
        if extra is None:
            assert any(word.startswith(f"{wanted}==") for word in installed), name
        else:
            assert any(re.fullmatch(rf"'\.\[(\w+,)*{extra[1]}(,\w+)*\]'", word) for word in installed), name


@pytest.mark.parametrize(("name", "command"), HOW_TO_GET.items())
def test_the_page_that_imports_a_package_says_how_to_get_it(name: str, command: str) -> None:
    pages = [text for file in FILES if name in packages(blocks(text := file.read_text(encoding="utf-8")))]
    assert pages
    assert all(command in page for page in pages)


def test_in_the_site_links_that_leave_the_pages_are_text() -> None:
    page = "[a](../b/a.json), [b](b.md#c), ![d](images/d.png), [`e`](../e.py)"
    assert on_page_markdown(page) == "a, [b](b.md#c), ![d](images/d.png), `e`"


def test_in_the_site_bars_in_code_of_tables_stand_for_themselves() -> None:
    assert on_page_markdown("| `a\\|b` | c \\| d |\n`e\\|f`\n") == "| `a|b` | c \\| d |\n`e\\|f`\n"


def test_a_block_that_prints_something_else_is_noticed() -> None:
    (block, _) = blocks("```python\nprint(1)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match=r"here.md:2"):
        run_python(block, {}, Path("here.md"))
