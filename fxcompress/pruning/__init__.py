"""Pruning algorithms: each chooses masks for the layers a config list selects."""

from fxcompress.pruning.admm import ADMMPruner
from fxcompress.pruning.agp import AGPPruner
from fxcompress.pruning.apoz import ActivationAPoZRankFilterPruner
from fxcompress.pruning.base import Pruner
from fxcompress.pruning.epochs import EpochPruner
from fxcompress.pruning.fpgm import FPGMPruner
from fxcompress.pruning.iterative import IterativePruner
from fxcompress.pruning.l1 import L1FilterPruner
from fxcompress.pruning.l2 import L2FilterPruner
from fxcompress.pruning.lamp import LAMPPruner
from fxcompress.pruning.layers import Layer
from fxcompress.pruning.level import LevelPruner
from fxcompress.pruning.linear import LinearPruner
from fxcompress.pruning.lottery_ticket import LotteryTicketPruner
from fxcompress.pruning.masker import OneshotPruner, WeightMasker
from fxcompress.pruning.masks import get_masks
from fxcompress.pruning.mean_activation import ActivationMeanRankFilterPruner
from fxcompress.pruning.measuring import ActivationPruner, GradientPruner, MeasuringPruner
from fxcompress.pruning.movement import MovementPruner
from fxcompress.pruning.obd import OBDPruner
from fxcompress.pruning.random import RandomPruner
from fxcompress.pruning.registry import PRUNERS, register
from fxcompress.pruning.scheduled import ScheduledPruner
from fxcompress.pruning.scoring import FilterPruner, ScoringPruner
from fxcompress.pruning.slim import SlimPruner
from fxcompress.pruning.taylor import TaylorFOWeightFilterPruner
from fxcompress.pruning.wanda import WandaPruner
from fxcompress.pruning.wrapper import Wrapper

for _pruner in (
    LevelPruner,
    L1FilterPruner,
    L2FilterPruner,
    FPGMPruner,
    SlimPruner,
    TaylorFOWeightFilterPruner,
    ActivationAPoZRankFilterPruner,
    ActivationMeanRankFilterPruner,
    LAMPPruner,
    RandomPruner,
    OBDPruner,
    WandaPruner,
):
    register(_pruner)

__all__ = [
    "PRUNERS",
    "ADMMPruner",
    "AGPPruner",
    "ActivationAPoZRankFilterPruner",
    "ActivationMeanRankFilterPruner",
    "ActivationPruner",
    "EpochPruner",
    "FPGMPruner",
    "FilterPruner",
    "GradientPruner",
    "IterativePruner",
    "L1FilterPruner",
    "L2FilterPruner",
    "LAMPPruner",
    "Layer",
    "LevelPruner",
    "LinearPruner",
    "LotteryTicketPruner",
    "MeasuringPruner",
    "MovementPruner",
    "OBDPruner",
    "OneshotPruner",
    "Pruner",
    "RandomPruner",
    "ScheduledPruner",
    "ScoringPruner",
    "SlimPruner",
    "TaylorFOWeightFilterPruner",
    "WandaPruner",
    "WeightMasker",
    "Wrapper",
    "get_masks",
    "register",
]
