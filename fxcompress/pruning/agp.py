"""AGP, automated gradual pruning: fast at first, when much is redundant, then ever slower (Zhu & Gupta,
To Prune, or Not to Prune, 2017).
"""

from __future__ import annotations

from typing import ClassVar, final

from fxcompress.pruning.epochs import EpochPruner


@final
class AGPPruner(EpochPruner):
    """At epoch ``t = t0 + kΔt``: ``s_t = s_f + (s_i − s_f)(1 − (t − t0)/(nΔt))³``."""

    name: ClassVar[str] = "agp"

    def between(self, initial: float, final: float, progress: float) -> float:
        """The cubic."""
        return final + (initial - final) * (1 - progress) ** 3
