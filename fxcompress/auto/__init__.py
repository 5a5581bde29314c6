"""Auto-compression: a search space and an evaluator, or just a budget, and the best model comes out."""

from fxcompress.auto.experiment import AutoCompressionExperiment, ExperimentConfig
from fxcompress.auto.interface import AbstractAutoCompressionModule
from fxcompress.auto.limits import COSTS, Limit
from fxcompress.auto.options import Options
from fxcompress.auto.plots import plot_front
from fxcompress.auto.result import Row, SearchResult
from fxcompress.auto.search import search
from fxcompress.auto.search_job import SearchJob
from fxcompress.auto.space import AutoCompressionSearchSpaceGenerator

__all__ = [
    "COSTS",
    "AbstractAutoCompressionModule",
    "AutoCompressionExperiment",
    "AutoCompressionSearchSpaceGenerator",
    "ExperimentConfig",
    "Limit",
    "Options",
    "Row",
    "SearchJob",
    "SearchResult",
    "plot_front",
    "search",
]
