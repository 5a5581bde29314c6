"""Progress of long work, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def shown(items: Iterable[T], told: str) -> Iterable[T]:
    """``items``, with a bar labelled ``told`` on standard error while they are gone through."""
    console = Console(stderr=True)
    return track(items, told, console=console, transient=True, disable=not console.is_terminal)
