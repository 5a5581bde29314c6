"""The config list: its schema, what it selects in a model, and an explanation of both."""

from fxcompress.config.explain import Explanation, explain, explain_selection
from fxcompress.config.registry import (
    known_pruners,
    known_quantizers,
    register_pruner,
    register_quantizer,
)
from fxcompress.config.schema import Entry, parse
from fxcompress.config.select import Selection, TotalGroup, refuse_schedule, select
from fxcompress.config.settings import PruningSettings, QuantSettings
from fxcompress.config.targets import Target, targets_of_graph, targets_of_model

__all__ = [
    "Entry",
    "Explanation",
    "PruningSettings",
    "QuantSettings",
    "Selection",
    "Target",
    "TotalGroup",
    "explain",
    "explain_selection",
    "known_pruners",
    "known_quantizers",
    "parse",
    "refuse_schedule",
    "register_pruner",
    "register_quantizer",
    "select",
    "targets_of_graph",
    "targets_of_model",
]
