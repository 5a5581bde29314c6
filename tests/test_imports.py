"""Imports point one way: a module imports only from its own layer and those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "fxcompress"

# Bottom to top. A name stands for a package or a module directly under `fxcompress`.
LAYERS = (
    ("errors",),
    ("ops", "places", "progress"),
    ("numerics", "kernels"),
    ("graph",),
    ("rules",),
    ("passes",),
    ("config",),
    ("training",),
    ("pruning", "quantization"),
    ("export", "report", "runtime"),
    ("compiler",),
    ("budget", "callbacks", "sensitivity", "sqnr"),
    ("mixed_precision", "partial_quantization"),
    ("page",),
    ("demo", "demo_result"),
    ("auto",),
    ("commands",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# Imports inside functions that point upwards, each with its reason.
ALLOWED = {
    ("pruning.base", "export.seeds"): "Pruner.export_model writes files, as the seeds' API does",
    ("quantization.base", "export.seeds"): "Quantizer.export_model, likewise",
    ("pruning.iterative", "compiler"): "IterativePruner removes channels physically between its rounds",
    ("config.registry", "pruning"): "the built-in algorithms register themselves when they are imported",
    ("config.registry", "quantization"): "likewise",
    ("cli", ""): "the version, which __init__ holds",
}


def modules() -> list[Path]:
    """Every module of the package; the passes are found through their link."""
    folders = [ROOT, *(path for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__")]
    return sorted(file for folder in folders for file in folder.glob("*.py"))


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> str:
    """The layer of a module name without ``fxcompress.``; the empty name is the package's ``__init__``."""
    return module.split(".")[0] or "__init__"


def imported(node: ast.AST) -> Iterator[str]:
    """The modules of this package that an import statement names, without ``fxcompress.``."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "fxcompress":
        names = [f"fxcompress.{a.name}" if a.name in LEVEL else "fxcompress" for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        names = [node.module]
    for name in names:
        if name.split(".")[0] == "fxcompress":
            yield name.removeprefix("fxcompress").removeprefix(".")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def arrows(tree: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool, int]]:
    """``(imported module, inside a function, line)``; what is imported for type checkers only is no arrow."""
    for node in ast.iter_child_nodes(tree):
        for name in imported(node):
            yield name, inside, getattr(node, "lineno", 0)
        if not is_type_checking(node):
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from arrows(node, inside=deeper)


def wrong_arrows(module: str, source: str) -> list[str]:
    """Arrows that point upwards."""
    found = []
    for name, inside, line in arrows(ast.parse(source)):
        if LEVEL[layer(name)] > LEVEL[layer(module)] and not (inside and (module, name) in ALLOWED):
            found.append(f"{module}:{line} imports {name or '__init__'}, a layer above its own")
    return found


@pytest.mark.parametrize("file", modules(), ids=dotted)
def test_imports_point_down(file: Path) -> None:
    assert layer(dotted(file)) in LEVEL, f"say in LAYERS where {dotted(file)} belongs"
    assert wrong_arrows(dotted(file), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", modules(), ids=dotted)
def test_imports_are_absolute(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    relative = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert relative == []


def test_every_exception_is_used() -> None:
    used = {
        (dotted(f), name) for f in modules() for name, inside, _ in arrows(ast.parse(f.read_text())) if inside
    }
    assert set(ALLOWED) <= used


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("graph.x", "from fxcompress.passes.shrink import shrink"),
        ("rules.x", "import fxcompress.config"),
        ("errors", "from fxcompress import ops"),
        ("config.x", "def f():\n    from fxcompress import compile"),
        ("pruning.x", "if True:\n    import fxcompress.export.seeds"),
    ],
)
def test_an_arrow_upwards_is_noticed(module: str, source: str) -> None:
    assert len(wrong_arrows(module, source)) == 1


def test_an_arrow_for_type_checkers_only_is_none() -> None:
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fxcompress.compiler import compile\n"
    )
    assert wrong_arrows("errors", source) == []
