"""The rule table: operator name → rule, and the three contexts a rule works with.

A rule says three things about its operator:

- ``flow``: how the axes of its result depend on those of its operands (``Flow``);
- ``constants``: which slices of its result are constant, given which slices of its operands are (``Values``);
- ``shrink``: what else must change once slices are gone: literal sizes, module attributes (``Shrink``).

An operator without a rule freezes the axes around it and is reported by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from fxcompress.graph.calls import Call

if TYPE_CHECKING:
    from fxcompress.rules.axes import Contraction
    from fxcompress.rules.contraction import Need
    from fxcompress.rules.flow import Flow
    from fxcompress.rules.rewrite import Shrink
    from fxcompress.rules.values import Values


class Rule:
    """Base of all rules; the defaults are those of an operator that keeps no constants and has no
    literals.
    """

    def flow(self, call: Call, flow: Flow) -> None:
        """Give the result its axes and state the relations."""
        raise NotImplementedError(f"{type(self).__name__} must say how axes flow")

    def constants(self, call: Call, values: Values) -> None:
        """Record constant slices of the result (none by default)."""

    def need(self, contraction: Contraction, values: Values) -> Need | None:
        """Which slices a contraction needs (``None``: all of them)."""
        return None

    def shrink(self, call: Call, shrink: Shrink) -> None:
        """Adjust literals and module attributes (none by default)."""


_RULES: dict[str, Rule] = {}
R = TypeVar("R", bound=type[Rule])


def rule(*ops: str) -> Callable[[R], R]:
    """Class decorator: one instance of the rule serves the named operators."""

    def register(cls: R) -> R:
        instance = cls()
        for op in ops:
            if op in _RULES:
                raise ValueError(f"operator {op!r} has two rules")
            _RULES[op] = instance
        return cls

    return register


def register(op: str, instance: Rule) -> None:
    """Register one more operator under an existing rule."""
    _RULES[op] = instance


def rule_for(call: Call) -> Rule | None:
    """The rule of an operator, or of one overload of it;
    what ATen tags as pointwise has the pointwise rule.
    """
    if not isinstance(call.target, torch._ops.OpOverload):
        return _RULES.get(call.op)
    found = _RULES.get(f"{call.op}.{call.target._overloadname}") or _RULES.get(call.op)
    if found is None and torch.Tag.pointwise in call.target.tags:
        return _RULES["pointwise"]
    return found


def ruled_operators() -> tuple[str, ...]:
    """Names of all operators with a rule of their own."""
    return tuple(sorted(_RULES))
