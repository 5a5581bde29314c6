"""Every error a user can cause. Each message says what, expected, got, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FxcompressError(Exception):
    """Base of all errors raised on purpose by fxcompress."""


class ConfigError(FxcompressError, ValueError):
    """A config list is malformed or selects nothing."""


class CaptureError(FxcompressError):
    """The model could not be captured as a graph."""


class PassError(FxcompressError):
    """A pass left a graph that does not lint, re-infer or keep its numbers."""


class SpeedupError(FxcompressError):
    """The speedup pass was given masks it cannot use, or its result differs from the masked model."""


class ExportError(FxcompressError):
    """A model file could not be written, read, or does not agree with the model."""


class SizeWarning(UserWarning):
    """A captured model is called with other sizes than those that its code computed with."""


def did_you_mean(name: str, candidates: Iterable[str], *, limit: int = 3) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest candidates, or an empty string."""
    close = difflib.get_close_matches(name, list(candidates), n=limit, cutoff=0.6)
    if not close:
        return ""
    return "; did you mean " + " or ".join(repr(c) for c in close) + "?"


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line for line in str(error).splitlines() if line.strip()), "(no message)")
