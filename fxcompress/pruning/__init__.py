"""Pruning algorithms: each chooses masks for the layers a config list selects."""

from fxcompress.pruning.base import Pruner, StructuredPruner
from fxcompress.pruning.fpgm import FPGMPruner
from fxcompress.pruning.l1 import L1FilterPruner
from fxcompress.pruning.l2 import L2FilterPruner
from fxcompress.pruning.level import LevelPruner
from fxcompress.pruning.masks import get_masks
from fxcompress.pruning.registry import PRUNERS, register

for _pruner in (LevelPruner, L1FilterPruner, L2FilterPruner, FPGMPruner):
    register(_pruner)

__all__ = [
    "PRUNERS",
    "FPGMPruner",
    "L1FilterPruner",
    "L2FilterPruner",
    "LevelPruner",
    "Pruner",
    "StructuredPruner",
    "get_masks",
    "register",
]
