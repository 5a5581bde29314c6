"""Smaller specifications that still fail, found without Hypothesis: drop steps, then lower numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.generator.spec import Spec, Step

PLAIN_HEADS = ((2,), (0,))  # one output: no head, or pooling and a Linear
Case = tuple[Spec, tuple[int, ...]]


def reduce(case: Case, fails: Callable[[Case], bool], seconds: float) -> Case:
    """The smallest case found within `seconds` for which `fails` holds; `case` itself must fail.

    A case is a network's specification and the knobs of its pruning.
    """
    deadline = time.monotonic() + seconds
    improved = True
    while improved:
        improved = False
        for candidate in _simpler(case):
            if time.monotonic() > deadline:
                return case
            if candidate != case and fails(candidate):
                case, improved = candidate, True
                break
    return case


def _simpler(case: Case) -> Iterator[Case]:
    """Candidates from the boldest to the most careful."""
    spec, knobs = case
    count = len(spec.steps)
    size = count
    while size >= 1:
        for start in range(0, count, size):
            yield replace(spec, steps=spec.steps[:start] + spec.steps[start + size :]), knobs
        size //= 2
    for head in PLAIN_HEADS[: PLAIN_HEADS.index(spec.head) if spec.head in PLAIN_HEADS else None]:
        yield replace(spec, head=head), knobs
    yield replace(spec, start=()), knobs
    for index, step in enumerate(spec.steps):
        if any(step.knobs):
            yield _with_step(spec, index, replace(step, knobs=())), knobs
        if step.source:
            yield _with_step(spec, index, replace(step, source=0)), knobs
    for position, knob in enumerate(knobs):
        if knob:
            yield spec, (*knobs[:position], 0, *knobs[position + 1 :])
    for index, step in enumerate(spec.steps):
        for position, knob in enumerate(step.knobs):
            if knob:
                lowered = (*step.knobs[:position], 0, *step.knobs[position + 1 :])
                yield _with_step(spec, index, replace(step, knobs=lowered)), knobs


def _with_step(spec: Spec, index: int, step: Step) -> Spec:
    return replace(spec, steps=(*spec.steps[:index], step, *spec.steps[index + 1 :]))
