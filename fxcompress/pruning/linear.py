"""Linear schedule: the same share more at every step (the linear case of Zhu & Gupta, To Prune, or Not to
Prune, 2017).
"""

from __future__ import annotations

from typing import ClassVar, final

from fxcompress.pruning.epochs import EpochPruner


@final
class LinearPruner(EpochPruner):
    """At epoch ``t = t0 + kΔt``: ``s_t = s_i + (s_f − s_i)(t − t0)/(nΔt)``."""

    name: ClassVar[str] = "linear"

    def between(self, initial: float, final: float, progress: float) -> float:
        """The line."""
        return initial + (final - initial) * progress
